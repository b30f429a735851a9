//! The process as the kernel sees it, under the names that every Prometheus client uses.

use std::fs::read_to_string;

/// Ticks of `/proc/self/stat` in a second: `USER_HZ`, which Linux has fixed at 100 for programs.
const USER_HZ: f64 = 100.0;

/// What `/proc` says. A value that can't be read is left out, not made up.
#[derive(Debug, Default)]
pub(super) struct Process {
    pub(super) cpu_seconds: Option<f64>,
    pub(super) resident_bytes: Option<u64>,
    pub(super) virtual_bytes: Option<u64>,
    pub(super) threads: Option<u64>,
    /// Since the Unix epoch.
    pub(super) start_seconds: Option<f64>,
    pub(super) open_fds: Option<u64>,
    pub(super) max_fds: Option<u64>,
}

impl Process {
    pub(super) fn read() -> Self {
        let text = |path: &str| read_to_string(path).unwrap_or_default();
        Self {
            // The folder that is being listed has a descriptor of its own.
            open_fds: std::fs::read_dir("/proc/self/fd")
                .ok()
                .map(|folder| (folder.count() as u64).saturating_sub(1)),
            max_fds: rustix::process::getrlimit(rustix::process::Resource::Nofile).current,
            ..Self::parse(
                &text("/proc/self/stat"),
                &text("/proc/self/status"),
                &text("/proc/stat"),
            )
        }
    }

    /// `stat` and `status` of the process and `stat` of the machine; see proc(5).
    fn parse(stat: &str, status: &str, machine: &str) -> Self {
        // The program's name may hold anything, so fields are counted from its end. The first is field 3 of the manual.
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let seconds = |number: usize| {
            let ticks: u64 = after_name
                .split_ascii_whitespace()
                .nth(number - 3)?
                .parse()
                .ok()?;
            Some(ticks as f64 / USER_HZ)
        };
        let sum = |(a, b): (f64, f64)| a + b;
        let kib = |key: &str| Some(number(status, key)?.saturating_mul(1024));
        Self {
            cpu_seconds: seconds(14).zip(seconds(15)).map(sum),
            start_seconds: number(machine, "btime ")
                .map(|boot| boot as f64)
                .zip(seconds(22))
                .map(sum),
            threads: number(status, "Threads:"),
            virtual_bytes: kib("VmSize:"),
            resident_bytes: kib("VmRSS:"),
            ..Self::default()
        }
    }
}

/// The number after a key at the beginning of a line.
fn number(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_any_program_name() {
        let stat = "4711 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 12 0 1000 8192 3";
        let status = "Name:\ta) b (c\nVmSize:\t    8 kB\nVmRSS:\t      12 kB\nThreads:\t12\n";
        let process = Process::parse(stat, status, "cpu 1 2\nbtime 1700000000\nprocesses 7\n");
        assert_eq!(process.cpu_seconds, Some(2.0));
        assert_eq!(process.threads, Some(12));
        assert_eq!(process.start_seconds, Some(1_700_000_010.0));
        assert_eq!(
            (process.virtual_bytes, process.resident_bytes),
            (Some(8_192), Some(12_288))
        );
    }

    #[test]
    fn what_cannot_be_read_is_left_out() {
        let process = Process::parse("", "", "");
        assert!(process.cpu_seconds.is_none() && process.start_seconds.is_none());
        assert!(process.threads.is_none() && process.resident_bytes.is_none());
    }

    #[test]
    fn this_process_is_found() {
        let process = Process::read();
        assert!(
            process.resident_bytes.is_some_and(|bytes| bytes > 100_000),
            "{process:?}"
        );
        assert!(process.open_fds.is_some_and(|n| n >= 3), "{process:?}");
        assert!(process.start_seconds.is_some_and(|s| s > 1.5e9), "{process:?}");
    }
}

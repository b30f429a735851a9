//! Stand-ins.
use super::{VersionMetrics, histogram::Snapshot};
impl Snapshot {
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
    pub fn quantile(&self, _q: f64) -> Option<f64> {
        None
    }
}
impl VersionMetrics {
    pub fn answered_total(&self) -> u64 {
        self.requests().map(|(_, n)| n).sum()
    }
    pub fn duration_snapshot(&self) -> Snapshot {
        self.duration.snapshot()
    }
    pub fn cpu_snapshot(&self) -> Snapshot {
        self.cpu.snapshot()
    }
    pub fn failed_total(&self) -> u64 {
        self.requests()
            .filter(|(c, _)| *c == "5xx")
            .map(|(_, n)| n)
            .sum::<u64>()
            + self.requests_unfinished()
    }
    pub fn memory_mean(&self) -> u64 {
        0
    }
    pub fn memory_max(&self) -> u64 {
        0
    }
}
impl VersionMetrics {
    pub fn unfinished_total(&self) -> u64 {
        self.requests_unfinished()
    }
}

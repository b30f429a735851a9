//! A gibibyte up and down at once, in bounded memory.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use berth_tests::berth::{Berth, Manifest};
use berth_tests::wire::head;

const SIZE: usize = 1 << 30;
const BLOCK: usize = 1 << 16;

/// Every block differs from the next, so that a lost or doubled one shows.
fn block(number: usize) -> Vec<u8> {
    let mut block = vec![(number % 251) as u8; BLOCK];
    block[..8].copy_from_slice(&(number as u64).to_le_bytes());
    block
}

/// The most that a process has had in memory, in MiB.
fn peak(berth: &Berth) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", berth.pid())).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() / 1024
}

/// Reads a chunked body block by block; returns its size.
fn receive(stream: TcpStream) -> usize {
    let mut reader = BufReader::with_capacity(BLOCK, stream);
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        reader.read_line(&mut line).unwrap();
    }
    let (mut total, mut number, mut rest) = (0, 0, Vec::with_capacity(2 * BLOCK));
    loop {
        line.clear();
        reader.read_line(&mut line).unwrap();
        let size = usize::from_str_radix(line.trim(), 16).unwrap();
        let before = rest.len();
        rest.resize(before + size + 2, 0);
        reader.read_exact(&mut rest[before..]).unwrap();
        rest.truncate(before + size);
        if size == 0 {
            assert!(rest.is_empty(), "{} bytes are no whole block", rest.len());
            return total;
        }
        total += size;
        while rest.len() >= BLOCK {
            assert!(rest[..BLOCK] == block(number), "block {number} differs");
            rest.drain(..BLOCK);
            number += 1;
        }
    }
}

#[test]
fn gibibyte_up_and_down_stays_in_bounded_memory() {
    for plugin in ["echo", "echo-p3"] {
        let component = format!("fixtures/{plugin}");
        let berth = Manifest::new()
            .handler_with(&component, "limits = { cpu = \"10m\", wall = \"10m\" }")
            .start();
        // What a small one takes is there from the start.
        assert_eq!(berth.post(&format!("/{plugin}/x"), "{}").status, 200);
        let before = peak(&berth);
        let started = Instant::now();
        let mut stream = TcpStream::connect(berth.address).unwrap();
        let receiving = stream.try_clone().unwrap();
        let receiving = std::thread::spawn(move || receive(receiving));
        let path = format!("/{plugin}/x");
        stream
            .write_all(head("POST", &path, &[], SIZE).as_bytes())
            .unwrap();
        for number in 0..SIZE / BLOCK {
            stream.write_all(&block(number)).unwrap();
        }
        assert_eq!(receiving.join().unwrap(), SIZE);
        let after = peak(&berth);
        println!(
            "{plugin}: 1 GiB each way in {:.1?}; at most {before} MiB before, {after} MiB after",
            started.elapsed()
        );
        assert!(after < before + 48, "{before} MiB grew to {after} MiB");
    }
}

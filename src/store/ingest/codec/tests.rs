//! Tests of the decode stage.

use std::io::Write;
use std::sync::mpsc::{channel, sync_channel};

use super::*;
use crate::image::{Algorithm, Digest};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd_of(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).unwrap()
}

fn source(bytes: &[u8], compression: Compression) -> LayerSource {
    LayerSource {
        blob: Digest::sha256(bytes),
        size: bytes.len() as u64,
        compression,
    }
}

/// Reads a few bytes at a time, then fails if told to.
struct Trickle<'a> {
    bytes: &'a [u8],
    step: usize,
    failure: Option<io::ErrorKind>,
}

impl Read for Trickle<'_> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        if self.bytes.is_empty()
            && let Some(kind) = self.failure
        {
            return Err(io::Error::new(kind, "the source broke"));
        }
        let len = self.step.min(room.len()).min(self.bytes.len());
        let (head, rest) = self.bytes.split_at(len);
        room[..len].copy_from_slice(head);
        self.bytes = rest;
        Ok(len)
    }
}

/// Runs the stage with a consumer that goes away after `most` bytes.
fn run_until(
    source: &LayerSource,
    from: &mut Trickle<'_>,
    limits: &Limits,
    most: usize,
    suspicion: bool,
) -> (Result<Decoded, Error>, Vec<u8>) {
    let suspicious = AtomicBool::new(suspicion);
    let (full, filled) = sync_channel(BUFFERS);
    let (back, used) = channel();
    let counters = LayerCounters::default();
    for _ in 0..BUFFERS {
        back.send(Vec::new()).unwrap();
    }
    std::thread::scope(|scope| {
        let exchange = Exchange {
            full,
            used,
            suspicious: &suspicious,
        };
        let counters = &counters;
        let stage = scope.spawn(move || decode(source, from, limits, counters, &exchange));
        let mut all = Vec::new();
        for buffer in filled {
            all.extend(&buffer);
            if all.len() > most {
                break;
            }
            let _ = back.send(buffer);
        }
        drop(back);
        (stage.join().unwrap(), all)
    })
}

fn run(source: &LayerSource, bytes: &[u8]) -> (Result<Decoded, Error>, Vec<u8>) {
    let mut from = Trickle {
        bytes,
        step: usize::MAX,
        failure: None,
    };
    run_until(source, &mut from, &Limits::default(), usize::MAX, false)
}

fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let next = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

#[test]
fn every_compression_is_undone_whatever_was_declared() {
    let plain = [noise(600_000), vec![7; 600_000]].concat();
    let (one, two) = plain.split_at(500_000);
    let skippable = [
        &[0x53, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3][..],
        &zstd_of(&plain),
    ]
    .concat();
    let blobs = [
        plain.clone(),
        gzip(&plain),
        [gzip(one), gzip(two), gzip(b"")].concat(),
        zstd_of(&plain),
        [zstd_of(one), zstd_of(two)].concat(),
        skippable,
    ];
    for (number, blob) in blobs.iter().enumerate() {
        for declared in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let (result, all) = run(&source(blob, declared), blob);
            assert!(
                result.as_ref().is_ok_and(|decoded| decoded.whole),
                "{number}: {result:?}"
            );
            assert!(all == plain, "{number}");
        }
        for step in [1, 1000] {
            let mut slow = Trickle {
                bytes: blob,
                step,
                failure: None,
            };
            let (result, all) = run_until(
                &source(blob, Compression::Gzip),
                &mut slow,
                &Limits::default(),
                usize::MAX,
                false,
            );
            assert!(result.is_ok() && all == plain, "{number}");
        }
    }
}

#[test]
fn sha512_is_a_digest_too() {
    let blob = gzip(b"content");
    let mut hasher = Hasher::new(Algorithm::Sha512);
    hasher.update(&blob);
    let mut source = source(&blob, Compression::Gzip);
    source.blob = hasher.finish();
    assert!(run(&source, &blob).0.is_ok());
    source.blob = {
        let mut other = Hasher::new(Algorithm::Sha512);
        other.update(b"other");
        other.finish()
    };
    assert!(matches!(
        run(&source, &blob).0,
        Err(Error::DigestMismatch { .. })
    ));
}

#[test]
fn bad_data_of_the_right_digest_is_a_bad_layer() {
    let plain = noise(300_000);
    let cut = |blob: Vec<u8>| blob[..blob.len() - 5].to_vec();
    let mut flipped = gzip(&plain);
    let end = flipped.len();
    flipped[end - 8] ^= 1;
    let cases: &[(&str, Vec<u8>, &str)] = &[
        (
            "truncated gzip",
            cut(gzip(&plain)),
            "the gzip data is truncated",
        ),
        (
            "truncated zstd",
            cut(zstd_of(&plain)),
            "the zstd data is truncated",
        ),
        (
            "gzip header only",
            gzip(&plain)[..6].to_vec(),
            "the gzip data is truncated",
        ),
        (
            "garbage after gzip",
            [gzip(&plain), b"garbage".to_vec()].concat(),
            "garbage after it",
        ),
        (
            "zeros after gzip",
            [gzip(&plain), vec![0; 512]].concat(),
            "garbage after it",
        ),
        (
            "garbage after zstd",
            [zstd_of(&plain), b"garbage".to_vec()].concat(),
            "garbage after it",
        ),
        (
            "second member cut",
            [gzip(&plain), cut(gzip(&plain))].concat(),
            "truncated",
        ),
        ("wrong crc", flipped, "bad gzip data"),
        ("empty", Vec::new(), "empty, declared as gzip"),
    ];
    for (name, blob, want) in cases {
        match run(&source(blob, Compression::Gzip), blob).0 {
            Err(Error::BadLayer { cause, .. }) => assert!(cause.contains(want), "{name}: {cause}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn wrong_bytes_are_told_as_such() {
    let blob = gzip(&noise(300_000));
    let right = source(&blob, Compression::Gzip);
    let mut wrong = blob.clone();
    wrong[1000] ^= 1;
    for found in [&wrong[..], &vec![b'<'; blob.len()]] {
        let result = run(&right, found).0;
        assert!(
            matches!(result, Err(Error::DigestMismatch { .. })),
            "{result:?}"
        );
    }
    match run(&right, &blob[..blob.len() - 1]).0 {
        Err(Error::SizeMismatch {
            expected, found, ..
        }) => assert_eq!(found, expected - 1),
        other => panic!("{other:?}"),
    }
    let long = [&blob[..], &vec![0; 1 << 20]].concat();
    match run(&right, &long).0 {
        Err(Error::SizeMismatch {
            expected, found, ..
        }) => assert_eq!(found, expected + 1),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_source_s_own_error_wins() {
    let blob = gzip(&noise(300_000));
    for len in [0, 5, 1000, blob.len() - 1, blob.len()] {
        let mut from = Trickle {
            bytes: &blob[..len],
            step: 700,
            failure: Some(io::ErrorKind::TimedOut),
        };
        let result = run_until(
            &source(&blob, Compression::Gzip),
            &mut from,
            &Limits::default(),
            usize::MAX,
            false,
        )
        .0;
        match result {
            Err(Error::Source { source, .. }) => assert_eq!(source.kind(), io::ErrorKind::TimedOut),
            other => panic!("{len}: {other:?}"),
        }
    }
}

#[test]
fn bombs_are_stopped_early() {
    let bomb = zstd_of(&vec![0; 80 << 20]);
    match run(&source(&bomb, Compression::Zstd), &bomb).0 {
        Err(Error::Limit {
            key: "max_ratio",
            limit: 1100,
            ..
        }) => {}
        other => panic!("{other:?}"),
    }
    let large = gzip(&noise(3 << 20));
    let limits = Limits {
        max_layer_bytes: 1 << 20,
        ..Limits::default()
    };
    let mut from = Trickle {
        bytes: &large,
        step: usize::MAX,
        failure: None,
    };
    let (result, all) = run_until(
        &source(&large, Compression::Gzip),
        &mut from,
        &limits,
        usize::MAX,
        false,
    );
    assert!(
        matches!(
            result,
            Err(Error::Limit {
                key: "max_layer_bytes",
                ..
            })
        ),
        "{result:?}"
    );
    assert!(all.len() <= 1 << 20);
}

#[test]
fn a_consumer_that_goes_away_stops_the_stage() {
    let blob = gzip(&noise(8 << 20));
    let mut wrong = blob.clone();
    *wrong.last_mut().unwrap() ^= 1;
    let source = source(&blob, Compression::Gzip);
    for (bytes, suspicion, mismatch) in [
        (&blob, false, false),
        (&blob, true, false),
        (&wrong, false, false),
        (&wrong, true, true),
    ] {
        let mut from = Trickle {
            bytes,
            step: 64 << 10,
            failure: None,
        };
        let result = run_until(&source, &mut from, &Limits::default(), 1, suspicion).0;
        match result {
            Ok(Decoded { whole: false, .. }) => assert!(!mismatch),
            Err(Error::DigestMismatch { .. }) => assert!(mismatch),
            other => panic!("{other:?}"),
        }
        assert_eq!(from.bytes.is_empty(), suspicion);
    }
}

#[test]
fn windows_of_any_honest_size_are_taken() {
    let plain = noise(1 << 20);
    for (log, taken) in [(27, true), (30, false)] {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(log).unwrap();
        encoder.include_contentsize(false).unwrap();
        encoder.write_all(&plain).unwrap();
        let blob = encoder.finish().unwrap();
        let result = run(&source(&blob, Compression::Zstd), &blob).0;
        assert_eq!(result.is_ok(), taken, "{log}: {result:?}");
    }
}

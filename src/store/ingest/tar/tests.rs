//! Tests of the tar parser.

use std::process::Command;

use proptest::prelude::*;

use super::*;

/// An entry with its data, or literal bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Literal(Vec<u8>),
    Entry(Entry, Vec<u8>),
}

#[derive(Default)]
struct Collector {
    seen: Vec<Seen>,
    open: bool,
    all: Vec<u8>,
}

impl Sink for Collector {
    fn literal(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.all.extend(bytes);
        match self.seen.last_mut() {
            Some(Seen::Literal(last)) => last.extend(bytes),
            _ => self.seen.push(Seen::Literal(bytes.to_vec())),
        }
        Ok(())
    }
    fn begin(&mut self, entry: Entry) -> Result<(), Fault> {
        assert!(!std::mem::replace(&mut self.open, true));
        self.seen.push(Seen::Entry(entry, Vec::new()));
        Ok(())
    }
    fn data(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        assert!(self.open && !bytes.is_empty());
        self.all.extend(bytes);
        let Some(Seen::Entry(_, data)) = self.seen.last_mut() else {
            panic!("data outside an entry")
        };
        data.extend(bytes);
        Ok(())
    }
    fn end(&mut self) -> Result<(), Fault> {
        assert!(std::mem::replace(&mut self.open, false));
        let Some(Seen::Entry(entry, data)) = self.seen.last() else {
            panic!("end outside an entry")
        };
        assert_eq!(entry.body, data.len() as u64);
        Ok(())
    }
}

const BOUNDS: Bounds = Bounds {
    max_path: 4095,
    max_body: 1 << 40,
};

fn parse_in(tar: &[u8], mut part: impl FnMut() -> usize) -> Result<Vec<Seen>, Fault> {
    let mut parser = Parser::new(BOUNDS);
    let mut sink = Collector::default();
    let mut rest = tar;
    while !rest.is_empty() {
        let (head, tail) = rest.split_at(part().clamp(1, rest.len()));
        parser.push(head, &mut sink)?;
        rest = tail;
    }
    parser.finish()?;
    assert!(sink.all == tar, "every byte once, in order");
    Ok(sink.seen)
}

fn parse(tar: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, Fault> {
    let seen = parse_in(tar, || usize::MAX)?;
    Ok(seen
        .into_iter()
        .filter_map(|seen| match seen {
            Seen::Entry(entry, data) => Some((entry, data)),
            Seen::Literal(_) => None,
        })
        .collect())
}

fn refusal(tar: &[u8]) -> String {
    match parse(tar) {
        Err(Fault::Bad(cause)) => cause,
        Err(Fault::Limit { what, limit, key }) => format!("{what} over {limit} ({key})"),
        other => panic!("{other:?}"),
    }
}

/// A header of any dialect, fields set by name.
struct Raw([u8; 512]);

impl Raw {
    fn new(typeflag: u8, name: &[u8], size: u64) -> Self {
        let mut raw = Raw([0; 512]);
        raw.set(0, name);
        raw.set(100, b"0000644\0");
        raw.set(108, b"0001750\0");
        raw.set(116, b"0001751\0");
        raw.set(124, format!("{size:011o}\0").as_bytes());
        raw.set(136, b"00000000007\0");
        raw.0[156] = typeflag;
        raw.set(257, b"ustar\x0000");
        raw
    }
    fn set(&mut self, at: usize, bytes: &[u8]) -> &mut Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }
    fn gnu(&mut self) -> &mut Self {
        self.set(257, b"ustar  \0")
    }
    /// The header with its checksum and `data` padded after it.
    fn with(&mut self, data: &[u8]) -> Vec<u8> {
        self.set(148, b"        ");
        let sum: u32 = self.0.iter().map(|&b| u32::from(b)).sum();
        self.set(148, format!("{sum:06o}\0 ").as_bytes());
        let mut bytes = self.0.to_vec();
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }
}

fn record(key: &str, value: &str) -> String {
    let body = key.len() + value.len() + 3;
    let mut len = body + 1;
    while len.to_string().len() + body != len {
        len += 1;
    }
    format!("{len} {key}={value}\n")
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let body: String = records
        .iter()
        .map(|(key, value)| record(key, value))
        .collect();
    Raw::new(b'x', b"pax", body.len() as u64).with(body.as_bytes())
}

fn end() -> Vec<u8> {
    vec![0; 1024]
}

#[test]
fn fields_of_all_dialects_are_read() {
    let ustar = Raw::new(b'0', b"file", 3)
        .set(345, b"some/dir")
        .with(b"abc");
    let v7 = Raw::new(0, b"old/", 0)
        .set(257, &[0; 8])
        .set(345, b"junk")
        .with(b"");
    let gnu = Raw::new(b'3', b"dev", 0)
        .gnu()
        .set(108, &[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xfe])
        .set(136, &[0xff; 12])
        .set(329, b"0000010\0")
        .set(337, b"0000003\0")
        .with(b"");
    let link = Raw::new(b'1', b"hard", 77).set(157, b"file").with(b"");
    let tar = [ustar, v7, gnu, link, end()].concat();
    let entries = parse(&tar).unwrap();
    let [file, old, device, hard] = entries.as_slice() else {
        panic!("{entries:?}")
    };
    assert_eq!(file.0.path, b"some/dir/file");
    assert_eq!(
        (file.0.uid, file.0.gid, file.0.mtime, file.0.mode),
        (1000, 1001, 7, 0o644)
    );
    assert_eq!(
        (file.0.kind.clone(), file.1.as_slice()),
        (EntryKind::Regular, &b"abc"[..])
    );
    assert_eq!(
        (old.0.path.as_slice(), &old.0.kind),
        (&b"old/"[..], &EntryKind::Directory)
    );
    assert_eq!((device.0.uid, device.0.mtime), (0xffff_fffe, -1));
    assert_eq!(device.0.kind, EntryKind::CharDevice(8, 3));
    assert_eq!(hard.0.kind, EntryKind::HardLink(b"file".to_vec()));
}

#[test]
fn long_names_win_in_the_usual_order() {
    let long = [b'n'; 300];
    let body = [&long[..], b"\0"].concat();
    let tar = [
        Raw::new(b'L', b"././@LongLink", 301).gnu().with(&body),
        Raw::new(b'K', b"././@LongLink", 301).gnu().with(&body),
        Raw::new(b'2', b"short", 0)
            .gnu()
            .set(157, b"short")
            .with(b""),
        pax(&[("path", "pax"), ("linkpath", "link"), ("path", "p2")]),
        Raw::new(b'2', b"short", 0).set(157, b"short").with(b""),
        Raw::new(b'2', b"last", 0).set(157, b"t").with(b""),
    ]
    .concat();
    let names: Vec<_> = parse(&tar)
        .unwrap()
        .into_iter()
        .map(|(e, _)| (e.path, e.kind))
        .collect();
    assert_eq!(
        names,
        [
            (long.to_vec(), EntryKind::Symlink(long.to_vec())),
            (b"p2".to_vec(), EntryKind::Symlink(b"link".to_vec())),
            (b"last".to_vec(), EntryKind::Symlink(b"t".to_vec())),
        ]
    );
}

#[test]
fn global_headers_last_and_local_ones_override() {
    let body: String = record("mtime", "-1.5") + &record("uid", "70000") + &record("comment", "x");
    let tar = [
        Raw::new(b'g', b"pax", body.len() as u64).with(body.as_bytes()),
        pax(&[("uid", "5"), ("size", "2"), ("hdrcharset", "BINARY")]),
        Raw::new(b'0', b"a", 0).with(b"hi"),
        pax(&[("mtime", "")]),
        Raw::new(b'0', b"b", 0).with(b""),
        Raw::new(b'0', b"c", 0).with(b""),
        end(),
    ]
    .concat();
    let got: Vec<_> = parse(&tar)
        .unwrap()
        .into_iter()
        .map(|(e, data)| (e.uid, e.mtime, e.mtime_nsec, data))
        .collect();
    assert_eq!(
        got,
        [
            (5, -2, 500_000_000, b"hi".to_vec()),
            (70_000, 7, 0, vec![]),
            (70_000, -2, 500_000_000, vec![]),
        ]
    );
}

#[test]
fn sparse_files_of_all_forms_have_the_same_map() {
    let data = [b'd'; 700];
    let want = SparseMap {
        size: 10_000,
        regions: vec![(0, 200), (4096, 500)],
    };
    let mut old = Raw::new(b'S', b"s", 700);
    old.gnu().set(483, b"00000023420\0");
    for (at, number) in [
        (386, 0),
        (398, 200),
        (410, 4096),
        (422, 500),
        (434, 10_000),
        (446, 0),
    ] {
        old.set(at, format!("{number:011o}\0").as_bytes());
    }
    let map10 = "3\n0\n200\n4096\n500\n10000\n0\n";
    let data10 = [map10.as_bytes(), &vec![0; 512 - map10.len()], &data].concat();
    let tars = [
        old.with(&data),
        [
            pax(&[
                ("GNU.sparse.size", "10000"),
                ("GNU.sparse.numblocks", "2"),
                ("GNU.sparse.offset", "0"),
                ("GNU.sparse.numbytes", "200"),
                ("GNU.sparse.offset", "4096"),
                ("GNU.sparse.numbytes", "500"),
            ]),
            Raw::new(b'0', b"s", 700).with(&data),
        ]
        .concat(),
        [
            pax(&[
                ("GNU.sparse.name", "s"),
                ("GNU.sparse.size", "10000"),
                ("GNU.sparse.map", "0,200,4096,500"),
            ]),
            Raw::new(b'0', b"GNUSparseFile.0/s", 700).with(&data),
        ]
        .concat(),
        [
            pax(&[
                ("GNU.sparse.major", "1"),
                ("GNU.sparse.minor", "0"),
                ("GNU.sparse.name", "s"),
                ("GNU.sparse.realsize", "10000"),
            ]),
            Raw::new(b'0', b"GNUSparseFile.0/s", 1212).with(&data10),
        ]
        .concat(),
    ];
    for (form, tar) in tars.iter().enumerate() {
        let entries = parse(tar).unwrap();
        let [(entry, found)] = entries.as_slice() else {
            panic!("{form}: {entries:?}")
        };
        assert_eq!(entry.path, b"s", "{form}");
        assert_eq!(entry.kind, EntryKind::Sparse(want.clone()), "{form}");
        assert_eq!(found, &data, "{form}");
    }
}

#[test]
fn old_sparse_maps_go_on_in_further_blocks() {
    let mut first = Raw::new(b'S', b"s", 0);
    first.gnu().set(483, b"00001000000\0").set(482, &[1]);
    let mut more = [0; 512];
    let mut regions = Vec::new();
    for n in 0..25_u64 {
        let slot = [format!("{:011o}\0", n * 4096), format!("{:011o}\0", 1)].concat();
        if n < 4 {
            first.set(386 + n as usize * 24, slot.as_bytes());
        } else {
            let at = (n as usize - 4) * 24;
            more[at..at + 24].copy_from_slice(slot.as_bytes());
        }
        regions.push((n * 4096, 1));
    }
    first.set(124, format!("{:011o}\0", 25).as_bytes());
    let mut tar = first.with(b"");
    tar.extend(more);
    tar.extend([7; 25]);
    tar.resize(tar.len().next_multiple_of(512), 0);
    let entries = parse(&tar).unwrap();
    assert_eq!(
        entries[0].0.kind,
        EntryKind::Sparse(SparseMap {
            size: 0o1000000,
            regions
        })
    );
}

#[test]
fn ends_of_all_kinds_are_known() {
    let file = Raw::new(b'0', b"f", 3).with(b"abc");
    let accepted: &[(&str, Vec<u8>)] = &[
        ("empty", vec![]),
        ("marker only", end()),
        ("no marker", file.clone()),
        ("half a marker", [&file[..], &[0; 512]].concat()),
        ("no padding", file[..515].to_vec()),
        (
            "garbage after the marker",
            [&file[..], &end(), b"garbage"].concat(),
        ),
    ];
    for (name, tar) in accepted {
        assert!(parse(tar).is_ok(), "{name}");
    }
    let refused: &[(&str, Vec<u8>, &str)] = &[
        ("in a header", file[..100].to_vec(), "ends inside a header"),
        (
            "in data",
            file[..514].to_vec(),
            "ends inside the data of an entry",
        ),
        (
            "after PAX",
            pax(&[("path", "x")]),
            "ends inside an extended header",
        ),
        (
            "marker after PAX",
            [pax(&[("path", "x")]), end()].concat(),
            "ends after an extended header",
        ),
        (
            "in PAX",
            pax(&[("path", "x")])[..515].to_vec(),
            "ends inside an extended header",
        ),
        (
            "half a marker, then more",
            [&[0; 512], &file[..]].concat(),
            "half an end marker",
        ),
        ("no tar", vec![b'x'; 512], "wrong checksum"),
    ];
    for (name, tar, want) in refused {
        let cause = refusal(tar);
        assert!(cause.contains(want), "{name}: {cause}");
    }
}

#[test]
fn hostile_headers_are_refused_by_name() {
    let sparse = |map: &str, size: &str| {
        [
            pax(&[("GNU.sparse.size", size), ("GNU.sparse.map", map)]),
            Raw::new(b'0', b"s", 4).with(b"data"),
        ]
        .concat()
    };
    let cases: &[(Vec<u8>, &str)] = &[
        (
            Raw::new(b'0', b"neg", 0).set(124, &[0xff; 12]).with(b""),
            "\"neg\": size -1 is negative",
        ),
        (
            Raw::new(b'0', b"huge", 0)
                .set(124, b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff")
                .with(b""),
            "\"huge\": 9223372036854775807 bytes over 1099511627776 (max_layer_bytes)",
        ),
        (
            Raw::new(b'0', b"more", 0)
                .set(124, b"\x80\0\0\x01\0\0\0\0\0\0\0\0")
                .with(b""),
            "size does not fit",
        ),
        (
            Raw::new(b'0', b"word", 0)
                .set(124, b"elephants\0")
                .with(b""),
            "size is not a number",
        ),
        (
            Raw::new(b'0', b"id", 0)
                .set(108, b"\x80\0\0\x01\0\0\0\0")
                .with(b""),
            "uid 4294967296 does not fit",
        ),
        (
            Raw::new(b'3', b"dev", 0).set(329, b"0010000\0").with(b""),
            "\"dev\": device 4096:0",
        ),
        (
            [pax(&[("size", "-5")]), Raw::new(b'0', b"a", 0).with(b"")].concat(),
            "PAX size: a negative number",
        ),
        (
            [
                pax(&[("size", "99999999999999999999")]),
                Raw::new(b'0', b"a", 0).with(b""),
            ]
            .concat(),
            "PAX size: not a decimal",
        ),
        (
            [pax(&[("mtime", "soon")]), Raw::new(b'0', b"a", 0).with(b"")].concat(),
            "PAX mtime",
        ),
        (
            Raw::new(b'x', b"pax", 2 << 20).with(b""),
            "a PAX header of 2097152 bytes",
        ),
        (
            Raw::new(b'L', b"long", 5000).gnu().with(b""),
            "a name of 5000 bytes over 4095 (max_path)",
        ),
        (
            Raw::new(b'x', b"pax", 0).set(124, &[0xff; 12]).with(b""),
            "size of an extended header -1 is negative",
        ),
        (
            Raw::new(b'S', b"s", 0).with(b""),
            "\"s\": a sparse file in a tar that is not GNU's",
        ),
        (
            sparse("0,9", "100"),
            "\"s\": a sparse map of 9 bytes over 4 bytes of data",
        ),
        (
            sparse("0,2,1,2", "100"),
            "\"s\": a sparse map with regions out of order",
        ),
        (
            sparse("98,4", "100"),
            "\"s\": a sparse map with regions out of order or beyond",
        ),
        (
            sparse("18446744073709551615,4", "100"),
            "\"s\": a sparse map with regions out of order",
        ),
        (sparse("0,2,3", "100"), "an offset but no length"),
        (
            sparse("0,4", "99999999999999999"),
            "\"s\": a sparse file of 99999999999999999 bytes",
        ),
        (
            [
                pax(&[("GNU.sparse.major", "2"), ("GNU.sparse.minor", "0")]),
                Raw::new(b'0', b"s", 0).with(b""),
            ]
            .concat(),
            "a version that is not known",
        ),
        (
            [
                pax(&[
                    ("GNU.sparse.major", "1"),
                    ("GNU.sparse.minor", "0"),
                    ("GNU.sparse.realsize", "9"),
                ]),
                Raw::new(b'0', b"s", 600).with(&[b'9'; 600]),
            ]
            .concat(),
            "a number that is too long",
        ),
        (
            [
                pax(&[
                    ("GNU.sparse.major", "1"),
                    ("GNU.sparse.minor", "0"),
                    ("GNU.sparse.realsize", "9"),
                ]),
                Raw::new(b'0', b"s", 8).with(b"2000000\n"),
            ]
            .concat(),
            "more than 1048576 regions",
        ),
    ];
    for (tar, want) in cases {
        let cause = refusal(tar);
        assert!(cause.contains(want), "{want}: {cause}");
    }
}

#[test]
fn entries_of_unknown_type_are_told_with_their_data() {
    let tar = [
        Raw::new(b'V', b"label", 3).with(b"abc"),
        Raw::new(b'5', b"d", 9).with(b""),
        end(),
    ]
    .concat();
    let entries = parse(&tar).unwrap();
    assert_eq!(
        (&entries[0].0.kind, entries[0].1.as_slice()),
        (&EntryKind::Unknown(b'V'), &b"abc"[..])
    );
    assert_eq!(
        (&entries[1].0.kind, entries[1].0.body),
        (&EntryKind::Directory, 0)
    );
}

/// Files that exercise every dialect, made by a real archiver.
fn made_by_python(format: &str) -> Option<Vec<u8>> {
    let script = r#"
import io, sys, tarfile
fmt = getattr(tarfile, sys.argv[1])
out = io.BytesIO()
tar = tarfile.open(fileobj=out, mode="w", format=fmt)
def add(name, data=b"", **kw):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in kw.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))
long = "/".join(["component-%02d" % n for n in range(9)])
add("plain", b"x" * 1000, mtime=12345, uid=1000, gid=100, mode=0o4755)
add(long + "/file", b"y")
add("dir", type=tarfile.DIRTYPE, mode=0o1777)
add("sym", type=tarfile.SYMTYPE, linkname="plain")
add("hard", type=tarfile.LNKTYPE, linkname="plain")
add("dev", type=tarfile.BLKTYPE, devmajor=8, devminor=17)
add("fifo", type=tarfile.FIFOTYPE)
if sys.argv[1] != "USTAR_FORMAT":
    add("very/" + "long/" * 60 + "name", b"z", mtime=-3)
    add("biglink", type=tarfile.SYMTYPE, linkname="t" * 400)
    add("bigid", uid=3000000, gid=4294967294)
if sys.argv[1] == "PAX_FORMAT":
    add("times", pax_headers={"mtime": "-1.25", "SCHILY.xattr.user.k": "v"})
    add("n\u00e4me", b"")
tar.close()
sys.stdout.buffer.write(out.getvalue())
"#;
    let output = Command::new("python3")
        .args(["-c", script, format])
        .output()
        .ok()?;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Some(output.stdout)
}

#[test]
fn what_python_writes_is_read() {
    for format in ["USTAR_FORMAT", "GNU_FORMAT", "PAX_FORMAT"] {
        let Some(tar) = made_by_python(format) else {
            eprintln!("skipped: what_python_writes_is_read: python3 is not installed");
            return;
        };
        let entries = parse(&tar).unwrap();
        let find = |path: &str| {
            &entries
                .iter()
                .find(|(e, _)| e.path == path.as_bytes())
                .unwrap()
                .0
        };
        let plain = find("plain");
        assert_eq!(
            (plain.mtime, plain.uid, plain.gid, plain.mode, plain.body),
            (12345, 1000, 100, 0o4755, 1000)
        );
        assert_eq!(find("dev").kind, EntryKind::BlockDevice(8, 17));
        assert_eq!(find("fifo").kind, EntryKind::Fifo);
        assert_eq!(find("hard").kind, EntryKind::HardLink(b"plain".to_vec()));
        let deep = (0..9)
            .map(|n| format!("component-{n:02}/"))
            .collect::<String>()
            + "file";
        assert_eq!(find(&deep).body, 1, "{format}");
        if format != "USTAR_FORMAT" {
            assert_eq!(find(&format!("very/{}name", "long/".repeat(60))).mtime, -3);
            assert_eq!(find("biglink").kind, EntryKind::Symlink(vec![b't'; 400]));
            assert_eq!(
                (find("bigid").uid, find("bigid").gid),
                (3_000_000, 4_294_967_294)
            );
        }
        if format == "PAX_FORMAT" {
            let times = find("times");
            assert_eq!((times.mtime, times.mtime_nsec), (-2, 750_000_000));
            assert_eq!(&*times.xattrs[&b"user.k"[..]], b"v");
            find("n\u{e4}me");
        }
    }
}

#[test]
fn what_gnu_tar_writes_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(dir.path().join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[b's'; 5000], 1 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"end", (3 << 20) - 3).unwrap();
    drop(file);
    std::fs::write(dir.path().join("plain"), b"plain").unwrap();
    std::fs::hard_link(dir.path().join("plain"), dir.path().join("zlink")).unwrap();
    let forms: &[&[&str]] = &[
        &["--format=v7"],
        &["--format=ustar"],
        &["--format=gnu"],
        &["--format=pax"],
        &["--format=gnu", "--sparse"],
        &["--format=pax", "--sparse", "--sparse-version=0.0"],
        &["--format=pax", "--sparse", "--sparse-version=0.1"],
        &["--format=pax", "--sparse", "--sparse-version=1.0"],
    ];
    for form in forms {
        let mut tar = Command::new("tar");
        tar.args(*form)
            .args(["--sort=name", "-C"])
            .arg(dir.path())
            .args(["-cf", "-", "."]);
        let Ok(output) = tar.output() else {
            eprintln!("skipped: what_gnu_tar_writes_is_read: tar is not installed");
            return;
        };
        assert!(output.status.success(), "{form:?}");
        let entries = parse(&output.stdout).unwrap_or_else(|fault| panic!("{form:?}: {fault:?}"));
        let names: Vec<_> = entries
            .iter()
            .map(|(e, _)| String::from_utf8_lossy(&e.path))
            .collect();
        assert_eq!(names, ["./", "./plain", "./sparse", "./zlink"], "{form:?}");
        let (sparse, data) = &entries[2];
        let mut content = vec![0; 3 << 20];
        match &sparse.kind {
            EntryKind::Regular => content.copy_from_slice(data),
            EntryKind::Sparse(map) => {
                assert_eq!(map.size, 3 << 20);
                let mut data = data.as_slice();
                for &(offset, len) in &map.regions {
                    let (part, rest) = data.split_at(len as usize);
                    content[offset as usize..][..part.len()].copy_from_slice(part);
                    data = rest;
                }
                assert!(form.contains(&"--sparse"));
            }
            other => panic!("{other:?}"),
        }
        assert!(content[1 << 20..][..5000].iter().all(|&b| b == b's') && content.ends_with(b"end"));
        assert_eq!(content.iter().filter(|&&b| b != 0).count(), 5003);
    }
}

proptest! {
    #[test]
    fn where_the_bytes_are_cut_makes_no_difference(seed in any::<u64>(), max in 1..2000_usize) {
        let sparse = "1\n4096\n600\n";
        let tar = [
            pax(&[("path", "a"), ("SCHILY.xattr.user.x", "y")]),
            Raw::new(b'0', b"short", 1500).with(&[b'q'; 1500]),
            Raw::new(b'L', b"long", 150).gnu().with(&[b'l'; 150]),
            Raw::new(b'5', b"d", 0).gnu().with(b""),
            pax(&[("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "9999")]),
            Raw::new(b'0', b"s", 1112).with(&[sparse.as_bytes(), &vec![0; 512 - sparse.len()], &[1; 600]].concat()),
            end(),
            b"trailing".to_vec(),
        ]
        .concat();
        let whole = parse_in(&tar, || usize::MAX).unwrap();
        let mut state = seed;
        let cut = parse_in(&tar, || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as usize % max
        })
        .unwrap();
        prop_assert_eq!(whole, cut);
    }

    #[test]
    fn damage_is_refused_or_read_but_never_panics(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        fix in any::<bool>(),
    ) {
        let mut tar = [
            pax(&[("path", "a"), ("GNU.sparse.map", "0,4,8,4"), ("GNU.sparse.size", "12")]),
            Raw::new(b'0', b"s", 8).with(b"12345678"),
            Raw::new(b'S', b"s", 0).gnu().set(482, &[1]).with(&[0; 512]),
        ]
        .concat();
        for (at, byte) in flips {
            let at = at.index(tar.len());
            tar[at] = byte;
            if fix {
                // With a right checksum the damage goes further.
                let start = at - at % 512;
                let block: [u8; 512] = tar[start..start + 512].try_into().unwrap();
                let fixed = Raw(block).with(b"");
                tar[start..start + 512].copy_from_slice(&fixed);
            }
        }
        let _ = parse(&tar);
    }
}

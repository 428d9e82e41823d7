//! What is a reference, and what it is normalised to.

use super::*;
use proptest::prelude::*;

const HEX: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

#[test]
fn passwords_are_not_repeated() {
    for text in [
        "ann:hunter2@reg.example/app:1",
        "ann:hunter2@reg.example",
        "ann:hunter2@reg.example:5000",
        "https://ann:hunter2@reg.example/app",
        "https://ann:hun/ter2@reg.example:5000/app",
        "ann:hunter2@reg.example/app@sha256:0123",
    ] {
        let error = text.parse::<Reference>().unwrap_err().to_string();
        assert!(!error.contains("ter2"), "{error}");
        assert!(
            error.contains("reg.example") || error.contains("sha256"),
            "{error}"
        );
    }
    for (text, shown) in [
        ("a@sha256:12", "a@sha256:12"),
        ("reg.example:5000/a@b", "reg.example:5000/a@b"),
        ("busybox:1@", "busybox:1@"),
        ("ann@reg.example/app", "ann@reg.example/app"),
    ] {
        let error = text.parse::<Reference>().unwrap_err().to_string();
        assert!(error.contains(shown), "{error}");
    }
}

#[test]
fn normalises() {
    let d = format!("sha256:{HEX}");
    let long_path = "a".repeat(255);
    let table = [
        (
            "busybox",
            "docker.io/library/busybox:latest",
            "busybox:latest",
        ),
        (
            "busybox:1.36",
            "docker.io/library/busybox:1.36",
            "busybox:1.36",
        ),
        (
            "library/busybox",
            "docker.io/library/busybox:latest",
            "busybox:latest",
        ),
        (
            "grafana/loki",
            "docker.io/grafana/loki:latest",
            "grafana/loki:latest",
        ),
        (
            "docker.io/busybox",
            "docker.io/library/busybox:latest",
            "busybox:latest",
        ),
        (
            "index.docker.io/busybox",
            "docker.io/library/busybox:latest",
            "busybox:latest",
        ),
        ("index.docker.io/a/b:c", "docker.io/a/b:c", "a/b:c"),
        (
            "docker.io/library/a/b",
            "docker.io/library/a/b:latest",
            "library/a/b:latest",
        ),
        (
            "docker.io/a.b/c",
            "docker.io/a.b/c:latest",
            "docker.io/a.b/c:latest",
        ),
        (
            "docker.io/localhost/c",
            "docker.io/localhost/c:latest",
            "docker.io/localhost/c:latest",
        ),
        (
            "docker.io",
            "docker.io/library/docker.io:latest",
            "docker.io:latest",
        ),
        ("localhost/a", "localhost/a:latest", "localhost/a:latest"),
        (
            "localhost",
            "docker.io/library/localhost:latest",
            "localhost:latest",
        ),
        (
            "localhost:5000",
            "docker.io/library/localhost:5000",
            "localhost:5000",
        ),
        (
            "localhost:5000/a",
            "localhost:5000/a:latest",
            "localhost:5000/a:latest",
        ),
        (
            "127.0.0.1:5000/a/b:c",
            "127.0.0.1:5000/a/b:c",
            "127.0.0.1:5000/a/b:c",
        ),
        ("[::1]/a", "[::1]/a:latest", "[::1]/a:latest"),
        (
            "[2001:db8::1]:5000/a:b",
            "[2001:db8::1]:5000/a:b",
            "[2001:db8::1]:5000/a:b",
        ),
        ("Host/a", "Host/a:latest", "Host/a:latest"),
        (
            "Host.Example/a",
            "Host.Example/a:latest",
            "Host.Example/a:latest",
        ),
        ("quay.io/a/b", "quay.io/a/b:latest", "quay.io/a/b:latest"),
        (
            "xn--n3h.com/a",
            "xn--n3h.com/a:latest",
            "xn--n3h.com/a:latest",
        ),
        ("a/b.c/d", "docker.io/a/b.c/d:latest", "a/b.c/d:latest"),
        (
            "a__b/c_d/e---f/g.h",
            "docker.io/a__b/c_d/e---f/g.h:latest",
            "a__b/c_d/e---f/g.h:latest",
        ),
        ("a:_", "docker.io/library/a:_", "a:_"),
        (
            "a:V1.2-rc_3",
            "docker.io/library/a:V1.2-rc_3",
            "a:V1.2-rc_3",
        ),
    ];
    for (text, full, familiar) in table {
        let reference: Reference = text.parse().unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(reference.to_string(), full, "{text}");
        assert_eq!(reference.familiar(), familiar, "{text}");
    }
    for (text, full) in [
        (
            format!("busybox@{d}"),
            format!("docker.io/library/busybox@{d}"),
        ),
        (
            format!("busybox:1@{d}"),
            format!("docker.io/library/busybox:1@{d}"),
        ),
        (format!("h.x:1/a/b:c@{d}"), format!("h.x:1/a/b:c@{d}")),
        (format!("{HEX}:tag"), format!("docker.io/library/{HEX}:tag")),
        (format!("a/{HEX}"), format!("docker.io/a/{HEX}:latest")),
        (
            format!("h.x/{long_path}"),
            format!("h.x/{long_path}:latest"),
        ),
        (
            format!("a:{}", "t".repeat(128)),
            format!("docker.io/library/a:{}", "t".repeat(128)),
        ),
    ] {
        let reference: Reference = text.parse().unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(reference.to_string(), full);
    }
}

#[test]
fn splits() {
    let d = format!("sha256:{HEX}");
    let r: Reference = format!("h:5000/a/b:c@{d}").parse().unwrap();
    assert_eq!((r.domain(), r.path()), ("h:5000", "a/b"));
    assert_eq!(r.tag(), Some("c"));
    assert_eq!(r.digest().unwrap().to_string(), d);
    assert_eq!(r.repository(), "h:5000/a/b");
    assert_eq!(r.tagged().unwrap(), "h:5000/a/b:c");
    let r: Reference = format!("a@{d}").parse().unwrap();
    assert_eq!((r.tag(), r.tagged()), (None, None));
    assert_eq!(
        r.digested(r.digest().unwrap()),
        format!("docker.io/library/a@{d}")
    );
}

#[test]
fn refuses_with_a_reason() {
    for (text, reason) in [
        ("", "empty"),
        (" busybox", "space"),
        ("busy box", "space"),
        ("busybox\n", "space or control"),
        ("a\0b", "control"),
        ("https://quay.io/a/b", "write \"quay.io/a/b\""),
        ("docker://busybox", "leave out \"docker://\""),
        (HEX, "image id"),
        ("Busybox", "write \"library/busybox\""),
        ("a/Busybox", "write \"a/busybox\""),
        ("h.x/A:Tag", "write \"a\""),
        ("b\u{fc}sybox", "ASCII"),
        ("a:", "tag is empty"),
        (":tag", "element"),
        ("a:-x", "must not begin"),
        ("a:.x", "must not begin"),
        ("a:x+y", "letters, digits"),
        ("a@", "no algorithm"),
        ("a@sha256:12", "exactly 64"),
        ("a@md5:d41d8cd98f00b204e9800998ecf8427e", "sha256 or sha512"),
        ("@sha256:ba78", "exactly 64"),
        ("a//b", "empty element"),
        ("/a", "empty element"),
        ("a/", "empty element"),
        ("h.x/", "empty element"),
        ("a_/b", "\"a_\""),
        ("-a", "\"-a\""),
        ("a..b/c", "host name"),
        ("x/a..b", "\"a..b\""),
        ("x/a___b", "\"a___b\""),
        ("x/a._b", "\"a._b\""),
        ("x/a-_b", "\"a-_b\""),
        ("x/a*b", "\"a*b\""),
        ("..", "\"..\""),
        ("../etc/passwd", "host name"),
        ("h:x/a", "port"),
        ("h:/a", "port"),
        (":5000/a", "host name"),
        ("-h.x/a", "host name"),
        ("a_b.c/d", "host name"),
        ("[::1/a", "does not close"),
        ("[]:1/a", "IPv6"),
        ("[::g]:1/a", "IPv6"),
        ("[::1]5000/a", "after its brackets"),
        ("[::1]:/a", "port"),
        ("a:b:c", "tag"),
        ("user:password@h.x/a", "user and password"),
    ] {
        let error = text.parse::<Reference>().unwrap_err().to_string();
        assert!(error.contains(reason), "{text:?}: {error}");
    }
    for text in [
        format!("h.x/{}", "a".repeat(256)),
        format!("a:{}", "t".repeat(129)),
        format!("{}.x/a", "h".repeat(300)),
        format!("{HEX}@sha256:{}", HEX.to_uppercase()),
        "a/".repeat(1 << 20),
    ] {
        let error = text.parse::<Reference>().unwrap_err().to_string();
        assert!(error.len() < 800, "{error}");
    }
}

proptest! {
    #[test]
    fn never_panics(text in ".{0,80}") {
        let _ = text.parse::<Reference>();
    }

    #[test]
    fn reads_back_what_it_writes(
        text in "([A-Za-z0-9.-]{1,12}(:[0-9]{1,5})?/|\\[[0-9a-f:]{1,9}\\]/)?\
                 [a-z0-9._/-]{1,20}(:[A-Za-z0-9_.-]{1,12})?(@sha256:[0-9a-f]{64})?"
    ) {
        if let Ok(reference) = text.parse::<Reference>() {
            let full = reference.to_string();
            prop_assert_eq!(&full.parse::<Reference>().unwrap(), &reference);
            prop_assert_eq!(&reference.familiar().parse::<Reference>().unwrap(), &reference);
            prop_assert!(reference.tag().is_some() || reference.digest().is_some());
        }
    }
}

#[test]
fn repositories_of_names() {
    for (name, expected) in [
        ("busybox:1", "busybox"),
        ("127.0.0.1:5000/app:1", "127.0.0.1:5000/app"),
        ("127.0.0.1:5000/app", "127.0.0.1:5000/app"),
        (
            "docker.io/library/busybox@sha256:ab",
            "docker.io/library/busybox",
        ),
    ] {
        assert_eq!(repository(name), expected);
    }
}

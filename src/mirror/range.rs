//! Which part of a blob is wanted (RFC 9110 §14): pure.

/// A part of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All of it: no range was asked for, or none that has to be heeded.
    Whole,
    /// `first..end`.
    Some { first: u64, end: u64 },
    /// Nothing of what was asked for is there.
    None,
}

/// One range of bytes; several at once, other units and what is no range count for nothing.
pub(super) fn wanted(header: Option<&str>, size: u64) -> Part {
    let Some(range) = header.and_then(|header| header.trim().strip_prefix("bytes=")) else {
        return Part::Whole;
    };
    let Some((first, last)) = range.trim().split_once('-') else {
        return Part::Whole;
    };
    let (first, last) = (first.trim(), last.trim());
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        // More digits than a number has are more bytes than a blob has.
        digits.then(|| text.parse().unwrap_or(u64::MAX))
    };
    match (number(first), number(last)) {
        (Some(first), None) if last.is_empty() => part(first, size, size),
        (Some(first), Some(last)) if first <= last => part(first, last.saturating_add(1), size),
        (None, Some(count)) if first.is_empty() => part(size.saturating_sub(count), size, size),
        _ => Part::Whole,
    }
}

fn part(first: u64, end: u64, size: u64) -> Part {
    let end = end.min(size);
    if first >= end {
        return Part::None;
    }
    Part::Some { first, end }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let some = |first, end| Part::Some { first, end };
        for (header, size, expected) in [
            ("bytes=0-", 10, some(0, 10)),
            ("bytes=3-", 10, some(3, 10)),
            ("bytes=3-5", 10, some(3, 6)),
            ("bytes=3-99", 10, some(3, 10)),
            ("bytes=9-9", 10, some(9, 10)),
            ("bytes=-4", 10, some(6, 10)),
            ("bytes=-40", 10, some(0, 10)),
            (" bytes= 3 - 5 ", 10, some(3, 6)),
            ("bytes=0-18446744073709551616", 10, some(0, 10)),
            ("bytes=10-", 10, Part::None),
            ("bytes=99999999999999999999-", 10, Part::None),
            ("bytes=-0", 10, Part::None),
            ("bytes=0-", 0, Part::None),
            ("bytes=5-3", 10, Part::Whole),
            ("bytes=0-1,3-4", 10, Part::Whole),
            ("bytes=", 10, Part::Whole),
            ("bytes=-", 10, Part::Whole),
            ("bytes=a-b", 10, Part::Whole),
            ("bytes=+1-2", 10, Part::Whole),
            ("items=0-1", 10, Part::Whole),
        ] {
            assert_eq!(wanted(Some(header), size), expected, "{header} of {size}");
        }
        assert_eq!(wanted(None, 10), Part::Whole);
    }

    proptest::proptest! {
        #[test]
        fn parts_are_parts(header in "bytes=[0-9 ,-]{0,24}", size: u64) {
            if let Part::Some { first, end } = wanted(Some(&header), size) {
                assert!(first < end && end <= size);
            }
        }
    }
}

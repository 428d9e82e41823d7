//! Where the file system of a directory is mounted.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The mount point of a directory's file system: by the kernel's mount table, else by where the device number changes.
/// Both unreadable gives the directory itself. Touches the disk: call it once.
pub fn mount_point(dir: &Path) -> PathBuf {
    let dir = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    of_table(&table, &dir).unwrap_or_else(|| by_device(&dir))
}

/// The longest mount point that holds `dir`; of equal ones the last, which is on top (proc(5), mountinfo, field 5).
fn of_table(mountinfo: &[u8], dir: &Path) -> Option<PathBuf> {
    let mut best: Option<PathBuf> = None;
    for line in mountinfo.split(|byte| *byte == b'\n') {
        let Some(field) = line.split(|byte| *byte == b' ').nth(4) else {
            continue;
        };
        let mount = PathBuf::from(unescaped(field));
        let depth = mount.as_os_str().len();
        if dir.starts_with(&mount)
            && best
                .as_ref()
                .is_none_or(|best| best.as_os_str().len() <= depth)
        {
            best = Some(mount);
        }
    }
    best
}

/// The kernel writes blank, tab, newline and backslash as three octal digits.
fn unescaped(field: &[u8]) -> OsString {
    let mut text = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = (byte == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| {
                let digits = std::str::from_utf8(digits).ok()?;
                u8::from_str_radix(digits, 8).ok()
            });
        match octal {
            Some(escaped) => {
                text.push(escaped);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                text.push(byte);
                rest = tail;
            }
        }
    }
    OsString::from_vec(text)
}

fn by_device(dir: &Path) -> PathBuf {
    let Ok(device) = fs::metadata(dir).map(|data| data.dev()) else {
        return dir.to_owned();
    };
    let mut mount = dir;
    while let Some(parent) = mount.parent() {
        match fs::metadata(parent) {
            Ok(data) if data.dev() == device => mount = parent,
            _ => break,
        }
    }
    debug_assert!(!mount.as_os_str().as_bytes().is_empty());
    mount.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
        30 22 8:2 / /var rw,noatime shared:1 - xfs /dev/sdb1 rw\n\
        31 30 8:3 / /var/lib/my\\040store rw - xfs /dev/sdc1 rw\n\
        32 22 0:5 / /variant rw - tmpfs tmpfs rw\n\
        broken\n";

    #[test]
    fn the_longest_that_holds_the_directory() {
        for (dir, expected) in [
            ("/etc", "/"),
            ("/var", "/var"),
            ("/var/lib/larder", "/var"),
            ("/variant/x", "/variant"),
            ("/var/lib/my store/larder", "/var/lib/my store"),
            ("/varnish", "/"),
        ] {
            assert_eq!(
                of_table(TABLE, Path::new(dir)),
                Some(PathBuf::from(expected)),
                "{dir}"
            );
        }
        assert_eq!(of_table(b"", Path::new("/")), None);
    }

    #[test]
    fn table_and_device_numbers_agree_on_a_temporary_directory() {
        let dir = tempfile::tempdir().unwrap();
        let mount = mount_point(dir.path());
        assert!(dir.path().canonicalize().unwrap().starts_with(&mount));
        assert_eq!(
            fs::metadata(&mount).unwrap().dev(),
            fs::metadata(dir.path()).unwrap().dev()
        );
    }
}

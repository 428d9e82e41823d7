//! Disks that are full.

use super::*;

#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let options = c"size=12m";
    if let Err(error) =
        rustix::mount::mount("larder-test", &disk, "tmpfs", MountFlags::empty(), options)
    {
        eprintln!("skipped: a_full_disk_is_said_and_leaves_nothing: no tmpfs: {error}");
        return;
    }
    let _unmount = Unmount(disk.clone());
    let root = disk.join("root");
    let store = open(&root).unwrap();
    let lease = store.lease();
    layer(&store, 1, &contents_of(1), &lease).unwrap();
    store
        .commit_image(&image_commit(1, &[1], &["r/a:1"]), &lease)
        .unwrap();
    let (files, bytes) = (files_below(&root), du(&root));
    let error = layer(&store, 50, &[noise(50, 20 << 20)], &lease).unwrap_err();
    assert!(matches!(error, Error::NoSpace { .. }), "{error}");
    assert_eq!(files_below(&root), files);
    assert!(du(&root) <= bytes);
    assert_counted(&store);
    // To the last byte: small writes fail too, and whatever failed works again once there is space.
    let ballast = disk.join("ballast");
    let mut file = std::fs::File::create(&ballast).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    let failed = layer(&store, 4, &contents_of(4), &lease).unwrap_err();
    assert!(matches!(failed, Error::NoSpace { .. }), "{failed}");
    let blob = vec![noise(5, 4000)];
    let failed = layer(&store, 60, &blob, &lease);
    assert!(matches!(failed, Err(Error::NoSpace { .. })), "{failed:?}");
    let id = image_commit(1, &[], &[]).record.id;
    assert!(store.image(&id).is_some());
    assert_eq!(files_below(&root), files);
    drop(file);
    std::fs::remove_file(&ballast).unwrap();
    layer(&store, 4, &contents_of(4), &lease).unwrap();
    store
        .commit_image(&image_commit(2, &[4], &[]), &lease)
        .unwrap();
    assert_whole(&store, 1, &contents_of(1));
    assert_whole(&store, 4, &contents_of(4));
}

#[test]
fn a_file_system_that_fills_up_at_any_point_of_a_pull_is_said_and_leaves_nothing() {
    let name = "a_file_system_that_fills_up_at_any_point_of_a_pull_is_said_and_leaves_nothing";
    let dir = tempfile::tempdir().unwrap();
    let (image, disk) = (dir.path().join("image"), dir.path().join("disk"));
    std::fs::create_dir(&disk).unwrap();
    std::fs::File::create(&image)
        .unwrap()
        .set_len(48 << 20)
        .unwrap();
    let run = |program: &str, args: &[&std::ffi::OsStr]| {
        let output = Command::new(program).args(args).output();
        output.is_ok_and(|output| output.status.success())
    };
    let options = ["-q", "-F", "-m", "0"].map(std::ffi::OsStr::new);
    let made = run("mkfs.ext4", &[&options[..], &[image.as_os_str()]].concat());
    let mount = ["-o", "loop"].map(std::ffi::OsStr::new);
    let at = [image.as_os_str(), disk.as_os_str()];
    if !made || !run("mount", &[&mount[..], &at].concat()) {
        return eprintln!("skipped: {name}: no ext4 on a loop device here");
    }
    let _unmount = Unmount(disk.clone());
    let root = disk.join("root");
    let mut store = open(&root).unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    for (number, len) in (0_u64..).zip([2_000_000, 700_000].into_iter().chain([900; 2000])) {
        let mut header = tar::Header::new_gnu();
        header.set_size(len);
        header.set_mode(0o644);
        let content = noise(number, len as usize);
        tar.append_data(&mut header, format!("f{number}"), content.as_slice())
            .unwrap();
    }
    let tar = tar.into_inner().unwrap();
    let pull = |store: &Store| {
        let lease = store.lease();
        let layer = ingest(store, &tar, &lease)?;
        let mut image = image_commit(1, &[], &["r/a:1"]);
        image.record.layers = vec![layer];
        store.commit_image(&image, &lease).map(drop)
    };
    let id = image_commit(1, &[], &[]).record.id;
    let ballast = disk.join("ballast");
    let empty = files_below(&root);
    let (mut failed, mut done) = (0, 0);
    for left in (0..28).map(|step| step * (256 << 10)) {
        let file = std::fs::File::create(&ballast).unwrap();
        let mut taken = 0;
        for step in [1 << 20, 64 << 10, 4096] {
            let free = || {
                let stat = rustix::fs::statvfs(&disk).unwrap();
                stat.f_bavail * stat.f_frsize
            };
            let none = rustix::fs::FallocateFlags::empty();
            while free() >= left + step && rustix::fs::fallocate(&file, none, taken, step).is_ok() {
                taken += step;
            }
        }
        match pull(&store) {
            Ok(()) => {
                done += 1;
                store.remove_image(&id).unwrap();
            }
            Err(error) => {
                failed += 1;
                assert!(
                    matches!(error, Error::NoSpace { .. }),
                    "{left} left: {error}"
                );
                assert!(store.images().is_empty());
            }
        }
        assert_eq!(files_below(&root), empty, "{left} left");
        assert_counted(&store);
        drop(file);
        std::fs::remove_file(&ballast).unwrap();
        if left % (1 << 20) == 0 {
            // With space again it works, with this process and the next.
            pull(&store).unwrap();
            assert_eq!(store.fsck(false, &mut |_, _| {}).unwrap().damaged, vec![]);
            drop(store);
            store = open(&root).unwrap();
            assert!(store.remove_image(&id).unwrap().is_some());
        }
    }
    assert!(failed > 4 && done > 4, "{failed} failed, {done} done");
}

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

//! When images were used, by the store's own clock.

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

impl Bench {
    fn pass(&self, time: Duration) {
        self.store().inner.clock().advance(time);
    }
    fn age(&self, seed: u64) -> (u64, u64) {
        let id = image_commit(seed, &[], &[]).record.id;
        let age = self.store().ages()[&id];
        (age.pulled.as_secs() / 60, age.used.as_secs() / 60)
    }
    fn image(&self, seed: u64, layers: &[u64]) -> ImageId {
        let lease = self.store().lease();
        for seed in layers {
            layer(self.store(), *seed, &contents_of(*seed), &lease).unwrap();
        }
        let name = format!("r/a:{seed}");
        let commit = image_commit(seed, layers, &[&name]);
        self.store().commit_image(&commit, &lease).unwrap();
        commit.record.id
    }
}

#[test]
fn an_image_ages_by_time_that_passed_and_survives_restarts() {
    let mut bench = Bench::new();
    let one = bench.image(1, &[1]);
    bench.pass(HOUR);
    bench.image(2, &[2]);
    assert_eq!((bench.age(1), bench.age(2)), ((60, 60), (0, 0)));
    // The wall clock has been put back by decades: a use is a use.
    bench.store().touch_image(&one, -1);
    assert_eq!(bench.age(1), (60, 0));
    bench.pass(HOUR);
    // What is seen all the time is on disk when the store closes, or after an hour.
    bench.store().saw_image(&one, i64::MAX);
    bench.reopen();
    assert_eq!((bench.age(1), bench.age(2)), ((120, 0), (60, 60)));
}

#[test]
fn a_crash_forgets_no_use_that_was_flushed_and_sightings_of_an_hour_at_most() {
    let bench = Bench::new();
    let (one, two) = (bench.image(1, &[1]), bench.image(2, &[2]));
    bench.pass(HOUR);
    bench.store().touch_image(&one, 1);
    bench.store().saw_image(&two, 1);
    bench.pass(HOUR / 4);
    bench.store().saw_image(&two, 2);
    bench.store().flush_uses().unwrap();
    let copy = bench.crash_copy();
    let after = open(&copy.path().join("root")).unwrap();
    let ages = after.ages();
    assert_eq!(ages[&one].used.as_secs() / 60, 15);
    // Written for the touch's sake.
    assert_eq!(ages[&two].used.as_secs() / 60, 0);
    let database = || std::fs::read(bench.root().join("larder.redb")).unwrap();
    let before = database();
    bench.store().saw_image(&two, 3);
    bench.store().flush_uses().unwrap();
    assert!(before == database(), "a sighting was written at once");
    bench.pass(HOUR);
    bench.store().flush_uses().unwrap();
    assert!(before != database());
}

#[test]
fn rows_from_before_the_clock_age_from_now_on_in_their_order() {
    let mut records = Records::default();
    for (seed, pulled_at) in [(1, 70), (2, 30)] {
        let mut record = image_commit(seed, &[], &[]).record;
        record.pulled_at = pulled_at;
        let row = records::ImageRow {
            record,
            blobs: Vec::new(),
            damaged: false,
            seen: records::Seen::default(),
            namespaces: BTreeSet::new(),
        };
        records.images.insert(row.record.id.clone(), row);
    }
    assert_eq!(records.begin_ageing(1000).len(), 2);
    let pulled = |seed: u64| {
        let id = image_commit(seed, &[], &[]).record.id;
        records.images[&id].seen.pulled
    };
    assert_eq!((pulled(2), pulled(1)), (998, 999));
    assert!(records.begin_ageing(2000).is_empty());
}

#[test]
fn what_is_in_use_is_not_removed_as_unused() {
    let bench = Bench::new();
    let (one, two) = (bench.image(1, &[1, 2]), bench.image(2, &[2, 3]));
    let store = bench.store();
    let mark = |id: &ImageId| store.ages()[id].mark;
    let refused = |id: &ImageId, mark: u64| match store.remove_unused(id, mark) {
        Err(Error::Busy { user, .. }) => user,
        other => panic!("{other:?}"),
    };
    // One layer is leased: work on another image that has it, too.
    let lease = store.lease();
    store.layer(&diff_id(2), &lease).unwrap();
    assert!(store.held().is_empty());
    store.layer(&diff_id(1), &lease).unwrap();
    assert_eq!(store.held(), BTreeMap::from([(one.clone(), Hold::Leased)]));
    assert!(refused(&one, mark(&one)).contains("pull"));
    drop(lease);
    let before = mark(&one);
    bench.pass(Duration::from_millis(1));
    store.touch_image(&one, 1);
    assert!(refused(&one, before).contains("a moment ago"));
    store.pin_image(&one, true).unwrap();
    assert!(refused(&one, mark(&one)).contains("pin"));
    store.pin_image(&one, false).unwrap();
    assert!(store.remove_unused(&one, mark(&one)).unwrap().is_some());
    assert!(store.remove_unused(&one, 0).unwrap().is_none());
    assert!(store.image(&two).is_some());
    assert_whole(store, 2, &contents_of(2));
}

#[test]
fn parts_tell_what_goes_with_whom() {
    let mut bench = Bench::new();
    // Layers 2 and 3 share contents, 1 and 2 an image, 2 is in both.
    bench.image(1, &[1, 2]);
    bench.image(2, &[2, 3]);
    bench.image(3, &[5, 6]);
    for reopened in [false, true] {
        if reopened {
            bench.reopen();
        }
        let store = bench.store();
        let sharing = store.sharing().unwrap();
        assert_eq!(sharing, store.sharing().unwrap());
        assert!(sharing.images.is_sorted());
        let at = |seed: u64| {
            let id = image_commit(seed, &[], &[]).record.id;
            sharing
                .images
                .iter()
                .position(|image| *image == id)
                .unwrap() as u32
        };
        let mut whole = BTreeSet::from([at(1), at(2), at(3)]);
        let all = sharing.parts.iter().find(|part| part.users.len() == 3);
        // The content of 4096 bytes that every layer has.
        assert_eq!(all.unwrap().bytes, 4096);
        let total: u64 = sharing.parts.iter().map(|part| part.bytes).sum();
        let folders = ["packs", "layers", "blobs/sha256"].map(|name| bench.root().join(name));
        let on_disk: u64 = folders
            .iter()
            .map(|folder| du(folder) - folder.metadata().unwrap().blocks() * 512)
            .sum();
        assert_eq!(total, on_disk);
        // What is leased is nobody's to free.
        let lease = store.lease();
        store.layer(&diff_id(5), &lease).unwrap();
        let leased = store.sharing().unwrap();
        assert!(leased.parts.iter().all(|part| part.users.len() < 3));
        drop(lease);
        whole.clear();
    }
}

/// Frees images in each order, and compares what statfs shows with what was foretold.
#[test]
fn what_goes_is_what_the_file_system_gets_back() {
    let name = "what_goes_is_what_the_file_system_gets_back";
    let dir = tempfile::tempdir().unwrap();
    let (file, disk) = (dir.path().join("image"), dir.path().join("disk"));
    std::fs::create_dir(&disk).unwrap();
    std::fs::File::create(&file)
        .unwrap()
        .set_len(1 << 30)
        .unwrap();
    let run = |program: &str, args: &[&std::ffi::OsStr]| {
        let output = Command::new(program).args(args).output();
        output.is_ok_and(|output| output.status.success())
    };
    let options = ["-q", "-F", "-m", "0"].map(std::ffi::OsStr::new);
    let made = run("mkfs.ext4", &[&options[..], &[file.as_os_str()]].concat());
    let mount = ["-o", "loop"].map(std::ffi::OsStr::new);
    let at = [file.as_os_str(), disk.as_os_str()];
    if !made || !run("mount", &[&mount[..], &at].concat()) {
        return eprintln!("skipped: {name}: no ext4 on a loop device here");
    }
    let _unmount = Unmount(disk.clone());
    let store = open(&disk.join("root")).unwrap();
    // Files of 1 to 9 kB and one large one in each layer, with contents shared between neighbours.
    let contents = |seed: u64| -> Vec<Vec<u8>> {
        let small = (0..2000).map(|n| noise(seed / 2 * 10_000 + n, 1000 + n as usize * 4));
        small.chain([noise(seed, 40 << 20)]).collect()
    };
    for image in 0..6 {
        let lease = store.lease();
        for seed in [image, image + 1] {
            layer(&store, seed, &contents(seed), &lease).unwrap();
        }
        let commit = image_commit(image, &[image, image + 1], &[]);
        store.commit_image(&commit, &lease).unwrap();
    }
    for images in [[0, 1, 2], [5, 4, 3]] {
        let sharing = store.sharing().unwrap();
        let ids = images.map(|seed| image_commit(seed, &[], &[]).record.id);
        let gone: BTreeSet<u32> = ids
            .iter()
            .map(|id| sharing.images.iter().position(|image| image == id).unwrap() as u32)
            .collect();
        let parts = sharing.parts.iter();
        let going = parts.filter(|part| part.users.iter().all(|user| gone.contains(user)));
        let told: u64 = going.map(|part| part.bytes).sum();
        rustix::fs::sync();
        let before = store.space().unwrap().available;
        let mut said = 0;
        for id in &ids {
            said += store.remove_image(id).unwrap().unwrap().freed_bytes;
        }
        rustix::fs::sync();
        let freed = store.space().unwrap().available - before;
        assert!(freed > 100 << 20, "{freed}");
        assert!(
            told.abs_diff(freed) * 50 <= freed,
            "{told} told, {freed} freed"
        );
        assert!(
            said.abs_diff(freed) * 50 <= freed,
            "{said} said, {freed} freed"
        );
    }
}

use std::fs;
use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;
use vmm_sys_util::tempdir::TempDir;

use super::*;
use crate::memory::Place;
use crate::ring::{Element, Intent};

/// Longer than any test.
const HOLD: Duration = Duration::from_secs(3600);

/// A run directory on tmpfs, as `/run` is.
fn rundir() -> TempDir {
    TempDir::new_with_prefix("/dev/shm/ovsvhost-test-").unwrap()
}

fn identity(socket: &str, vring: u16) -> Identity {
    let place = |offset| Place { device: 1, inode: 7, offset };
    let features = feature::RING_PACKED;
    Identity { socket: socket.into(), vring, size: 256, features, areas: [place(0), place(0x1000), place(0x2000)] }
}

/// A vring that ran up to `cursor`, as its session does it.
fn run(recovery: &Recovery, identity: &Identity, cursor: u16) -> Journal {
    let journal = recovery.seat(identity).unwrap().journal;
    journal.settle(cursor);
    recovery.started(&identity.socket, usize::from(identity.vring));
    recovery.returned(&identity.socket, usize::from(identity.vring));
    journal
}

fn files(dir: &TempDir) -> Vec<PathBuf> {
    let mut all: Vec<_> = fs::read_dir(dir.as_path().join("state")).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    all
}

/// Leaves without a word: nothing is closed in order, only the claim is given up, as the kernel would.
fn die(recovery: Recovery) {
    drop(recovery);
}

#[test]
fn the_next_process_finds_where_a_ring_stood_and_what_was_under_way() {
    let dir = rundir();
    let recovery = Recovery::open(dir.as_path(), HOLD).unwrap();
    let journal = run(&recovery, &identity("/s", 1), 7);
    assert!(journal.room() >= 256);
    let element = Element { written: 60, id: 3, place: 2 };
    assert!(journal.put(255, element));
    journal.intend(7, 0x8001, 1);
    die(recovery);
    let recovery = Recovery::open(dir.as_path(), HOLD).unwrap();
    assert!(recovery.notices().is_empty());
    let seat = recovery.seat(&identity("/s", 1)).unwrap();
    assert!(seat.is_known && seat.note.is_none());
    assert_eq!(seat.journal.intent(), Intent { old: 7, new: 0x8001, count: 1 });
    assert_eq!(seat.journal.element(255), Some(element));
    // What another vring left is nothing to this one.
    assert!(!recovery.seat(&identity("/s", 0)).unwrap().is_known);
}

#[test]
fn a_ring_that_stopped_is_kept_and_no_interruption() {
    let dir = rundir();
    let recovery = Recovery::open(dir.as_path(), HOLD).unwrap();
    run(&recovery, &identity("/s", 0), 5);
    recovery.stopped("/s".as_ref(), 0);
    die(recovery);
    let recovery = Recovery::open(dir.as_path(), HOLD).unwrap();
    assert!(recovery.hold_left().is_none());
    assert!(recovery.seat(&identity("/s", 0)).unwrap().is_known);
}

#[test]
fn after_a_crash_those_that_receive_are_waited_for() {
    let dir = rundir();
    let recovery = Recovery::open(dir.as_path(), HOLD).unwrap();
    for (socket, vring) in [("/a", 0), ("/a", 1), ("/b", 0), ("/b", 1), ("/gone", 0)] {
        run(&recovery, &identity(socket, vring), 5);
    }
    recovery.stopped("/gone".as_ref(), 0);
    die(recovery);
    let recovery = Recovery::open(dir.as_path(), HOLD).unwrap();
    run(&recovery, &identity("/a", 0), 5);
    assert!(recovery.hold_left().is_some());
    run(&recovery, &identity("/b", 0), 5);
    assert!(recovery.hold_left().is_none());
    die(recovery);
    let recovery = Recovery::open(dir.as_path(), Duration::from_nanos(1)).unwrap();
    let deadline = std::time::Instant::now() + HOLD;
    let away = std::iter::repeat_with(|| recovery.stayed_away()).take_while(|_| std::time::Instant::now() < deadline);
    assert_eq!(away.flatten().next(), Some(vec!["/a".into(), "/b".into()]));
}

#[test]
fn a_process_that_died_before_its_ring_started_left_nothing() {
    let dir = rundir();
    let recovery = Recovery::open(dir.as_path(), HOLD).unwrap();
    recovery.seat(&identity("/s", 0)).unwrap().journal.settle(9);
    die(recovery);
    let recovery = Recovery::open(dir.as_path(), HOLD).unwrap();
    assert!(files(&dir).is_empty());
    assert!(!recovery.seat(&identity("/s", 0)).unwrap().is_known);
}

#[test]
fn what_the_front_end_asked_for_is_forgotten() {
    let dir = rundir();
    let recovery = Recovery::open(dir.as_path(), HOLD).unwrap();
    run(&recovery, &identity("/s", 0), 5);
    recovery.stopped("/s".as_ref(), 0);
    recovery.forget("/s".as_ref(), 0);
    assert!(files(&dir).is_empty());
    assert!(!recovery.seat(&identity("/s", 0)).unwrap().is_known);
}

#[test]
fn without_a_file_sessions_come_and_go_all_the_same() {
    let recovery = Recovery::in_process();
    run(&recovery, &identity("/s", 0), 5);
    recovery.stopped("/s".as_ref(), 0);
    let seat = recovery.seat(&identity("/s", 0)).unwrap();
    assert!(seat.is_known && seat.journal.intent().new == 5);
}

#[test]
fn other_memory_other_size_other_features_are_another_ring() {
    type Change = fn(&mut Identity);
    let changes: [(Change, &str); 4] = [
        (|i| i.areas[1].inode = 8, "lies elsewhere"),
        (|i| i.areas[0].offset = 64, "lies elsewhere"),
        (|i| i.size = 512, "another size"),
        (|i| i.features = 0, "other features"),
    ];
    for (change, word) in changes {
        let dir = rundir();
        let recovery = Recovery::open(dir.as_path(), HOLD).unwrap();
        run(&recovery, &identity("/s", 0), 5);
        die(recovery);
        let recovery = Recovery::open(dir.as_path(), HOLD).unwrap();
        let mut other = identity("/s", 0);
        change(&mut other);
        let seat = recovery.seat(&other).unwrap();
        assert!(!seat.is_known);
        assert!(seat.note.unwrap().contains(word));
        // Said once: the record is the new ring's now.
        let again = recovery.seat(&other).unwrap();
        assert!(!again.is_known && again.note.is_none());
        assert_eq!(files(&dir).len(), 1);
    }
}

#[test]
fn one_switch_at_a_time_has_the_records() {
    let dir = rundir();
    let _first = Recovery::open(dir.as_path(), HOLD).unwrap();
    let refused = Recovery::open(dir.as_path(), HOLD).unwrap_err().to_string();
    assert!(refused.contains("in use by another switch"), "{refused}");
    let without = Recovery::open_or_without(dir.as_path(), HOLD);
    assert!(without.notices()[0].contains("in use by another switch"));
    assert!(without.seat(&identity("/s", 0)).is_ok());
}

#[test]
fn a_directory_open_to_others_is_refused() {
    let dir = rundir();
    let state = dir.as_path().join("state");
    fs::create_dir(&state).unwrap();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o755)).unwrap();
    let refused = Recovery::open(dir.as_path(), HOLD).unwrap_err().to_string();
    assert!(refused.contains("must be this user's alone"), "{refused}");
    fs::remove_dir(&state).unwrap();
    std::os::unix::fs::symlink("/tmp", &state).unwrap();
    assert!(Recovery::open(dir.as_path(), HOLD).is_err(), "a link is not followed");
}

#[test]
fn a_run_directory_on_a_disk_has_its_records_in_shared_memory() {
    let Some(disk) = ["/var/tmp", "/tmp"].into_iter().find(|path| {
        let opened = fs::File::open(path).unwrap();
        crate::sys::file::backing(&opened).unwrap() == crate::sys::file::Backing::Other
    }) else {
        eprintln!("skipped: neither /var/tmp nor /tmp is on a disk here");
        return;
    };
    let dir = TempDir::new_with_prefix(format!("{disk}/ovsvhost-test-")).unwrap();
    let recovery = Recovery::open(dir.as_path(), HOLD).unwrap();
    run(&recovery, &identity("/s", 0), 5);
    die(recovery);
    assert!(!dir.as_path().join("state").exists());
    let recovery = Recovery::open(dir.as_path(), HOLD).unwrap();
    assert!(recovery.seat(&identity("/s", 0)).unwrap().is_known);
    recovery.forget("/s".as_ref(), 0);
}

#[test]
fn what_cannot_be_read_is_set_aside_and_named() {
    type Damage = fn(&mut Vec<u8>);
    let damages: [(Damage, &str); 6] = [
        (|bytes| bytes.clear(), "not a record"),
        (|bytes| bytes[..512].fill(0xa5), "not a record"),
        (|bytes| bytes[8] = 9, "has version 9"),
        (|bytes| bytes.truncate(4096 - 512), "size"),
        (|bytes| bytes.extend([0; 4096]), "size"),
        (|bytes| bytes[41] ^= 1, "checksum"),
    ];
    for (damage, word) in damages {
        let dir = rundir();
        let recovery = Recovery::open(dir.as_path(), HOLD).unwrap();
        run(&recovery, &identity("/s", 0), 5);
        run(&recovery, &identity("/t", 0), 6);
        let path = recovery.store.as_ref().unwrap().path_of(&identity("/s", 0).key());
        die(recovery);
        let mut bytes = fs::read(&path).unwrap();
        damage(&mut bytes);
        fs::write(&path, &bytes).unwrap();
        let recovery = Recovery::open(dir.as_path(), HOLD).unwrap();
        let [notice] = recovery.notices() else { panic!("{:?}", recovery.notices()) };
        assert!(notice.contains(word) && notice.contains(".bad"), "{notice}");
        assert_eq!(fs::read(path.with_extension("bad")).unwrap(), bytes, "kept for a person");
        assert!(!recovery.seat(&identity("/s", 0)).unwrap().is_known);
        assert!(recovery.seat(&identity("/t", 0)).unwrap().is_known, "the others are as good as before");
        die(recovery);
        assert!(Recovery::open(dir.as_path(), HOLD).unwrap().notices().is_empty(), "it is said once");
    }
}

#[test]
fn a_record_under_anothers_name_and_what_is_no_file_are_set_aside() {
    let dir = rundir();
    let recovery = Recovery::open(dir.as_path(), HOLD).unwrap();
    run(&recovery, &identity("/s", 0), 5);
    let path = |socket| recovery.store.as_ref().unwrap().path_of(&identity(socket, 0).key());
    let (ours, others) = (path("/s"), path("/t"));
    die(recovery);
    fs::copy(&ours, &others).unwrap();
    fs::write(ours.with_extension("new"), "half").unwrap();
    fs::create_dir(ours.with_file_name("0123")).unwrap();
    let recovery = Recovery::open(dir.as_path(), HOLD).unwrap();
    assert_eq!(recovery.notices().len(), 2, "{:?}", recovery.notices());
    assert!(!recovery.seat(&identity("/t", 0)).unwrap().is_known);
    assert!(!ours.with_extension("new").exists());
}

#[test]
fn guests_that_died_without_a_word_leave_no_more_than_so_many_records() {
    let dir = rundir();
    let recovery = Recovery::open(dir.as_path(), HOLD).unwrap();
    for guest in 0..KEPT_MAX + 10 {
        let gone = identity(&format!("/{guest}"), 0);
        run(&recovery, &gone, 0);
        recovery.stopped(&gone.socket, 0);
    }
    assert_eq!(files(&dir).len(), KEPT_MAX);
    assert!(!recovery.seat(&identity("/0", 0)).unwrap().is_known, "the oldest went");
    assert!(recovery.seat(&identity(&format!("/{}", KEPT_MAX + 9), 0)).unwrap().is_known);
}

#[test]
fn an_orderly_end_without_records_leaves_no_directory() {
    let dir = rundir();
    die(Recovery::open(dir.as_path(), HOLD).unwrap());
    assert!(!dir.as_path().join("state").exists());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A file that was torn anywhere, or written over with anything, is never taken for a record of another ring.
    #[test]
    fn a_torn_record_is_whole_or_nothing(
        at in 0_usize..512, patch in proptest::collection::vec(any::<u8>(), 1..64), cut in any::<Option<u16>>(),
    ) {
        let dir = rundir();
        let recovery = Recovery::open(dir.as_path(), HOLD).unwrap();
        run(&recovery, &identity("/s", 0), 5);
        let path = recovery.store.as_ref().unwrap().path_of(&identity("/s", 0).key());
        die(recovery);
        let before = fs::read(&path).unwrap();
        let mut bytes = before.clone();
        let end = (at + patch.len()).min(512);
        bytes[at..end].copy_from_slice(&patch[..end - at]);
        bytes.truncate(cut.map_or(bytes.len(), usize::from));
        fs::write(&path, &bytes).unwrap();
        let recovery = Recovery::open(dir.as_path(), HOLD).unwrap();
        let seat = recovery.seat(&identity("/s", 0)).unwrap();
        prop_assert_eq!(seat.is_known, bytes == before);
        prop_assert_eq!(recovery.notices().len(), usize::from(bytes != before));
    }
}

#[test]
fn the_next_process_knows_whose_memory_was_on_its_way() {
    let dir = rundir();
    let recovery = Recovery::open(dir.as_path(), HOLD).unwrap();
    let (memory, other) = (Files::from([(1, 7), (1, 8)]), Files::from([(1, 9)]));
    recovery.memory_arrives("/s".as_ref(), memory.clone()).unwrap();
    recovery.memory_arrives("/t".as_ref(), other.clone()).unwrap();
    recovery.memory_arrived("/t".as_ref());
    die(recovery);
    let recovery = Recovery::open(dir.as_path(), HOLD).unwrap();
    assert!(recovery.notices().is_empty());
    let is_arriving = |socket: &str, files: &Files| recovery.is_memory_arriving(socket.as_ref(), files);
    assert!(is_arriving("/s", &memory));
    // A part of it is announced before the rest.
    assert!(is_arriving("/s", &Files::from([(1, 8)])));
    assert!(!is_arriving("/s", &other));
    assert!(!is_arriving("/t", &other) && !is_arriving("/t", &memory));
    recovery.memory_arrived("/s".as_ref());
    assert!(!is_arriving("/s", &memory));
    assert!(files(&dir).is_empty());
}

#[test]
fn a_note_that_is_none_is_set_aside_and_named() {
    let dir = rundir();
    let recovery = Recovery::open(dir.as_path(), HOLD).unwrap();
    recovery.memory_arrives("/s".as_ref(), Files::from([(1, 7)])).unwrap();
    let path = files(&dir).remove(0);
    die(recovery);
    fs::write(&path, b"/s\x00seven\n").unwrap();
    let recovery = Recovery::open(dir.as_path(), HOLD).unwrap();
    assert!(!recovery.is_memory_arriving("/s".as_ref(), &Files::from([(1, 7)])));
    assert_eq!(recovery.notices().len(), 1);
    assert!(recovery.notices()[0].contains("no note"), "{}", recovery.notices()[0]);
}

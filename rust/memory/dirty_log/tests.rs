use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use vmm_sys_util::tempfile::TempFile;

use super::super::{Access, Iova, RegionSpec};
use super::*;

/// A file of `size` bytes in shared memory.
fn file(size: u64) -> File {
    let file = TempFile::new_in(std::path::Path::new("/dev/shm")).unwrap().into_file();
    file.set_len(size).unwrap();
    file
}

fn log_of(file: &File, offset: u64, size: u64) -> Result<DirtyLog> {
    DirtyLog::map(file.try_clone().unwrap(), offset, size, false)
}

fn bits(file: &File, offset: u64, size: usize) -> Vec<u64> {
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, offset).unwrap();
    (0..8 * size as u64).filter(|page| bytes[(page / 8) as usize] >> (page % 8) & 1 == 1).collect()
}

/// Rows: C7.
#[test]
fn every_page_of_a_written_range_is_marked_and_no_other() {
    let file = file(8192);
    let logging = Logging::default();
    assert!(logging.turn(Some(&Arc::new(log_of(&file, 100, 64).unwrap()))));
    logging.mark([(Gpa(0x1fff), 2), (Gpa(0x9000), 0x1000), (Gpa(0xf000), 0)]);
    assert_eq!(bits(&file, 100, 64), [1, 2, 9]);
}

/// Rows: C7.
#[test]
fn an_address_past_the_log_marks_nothing() {
    let file = file(4096);
    let logging = Logging::default();
    logging.turn(Some(&Arc::new(log_of(&file, 8, 2).unwrap())));
    for gpa in [16 << 12, 17 << 12, u64::MAX - 5, 1 << 63] {
        logging.mark([(Gpa(gpa), 4)]);
    }
    logging.mark([(Gpa(15 << 12), 0x3000)]);
    assert_eq!(bits(&file, 0, 4096), [8 * 8 + 15]);
}

#[test]
fn a_log_that_cannot_be_is_refused_by_name() {
    let file = file(4096);
    for (offset, size, part) in [
        (0, 0, "not possible"),
        (u64::MAX, 2, "not possible"),
        (1 << 63, 1 << 62, "not possible"),
        (4096, 1, "has 4096 bytes"),
        (1, 4096, "has 4096 bytes"),
    ] {
        let refused = log_of(&file, offset, size).unwrap_err().to_string();
        assert!(refused.contains("dirty log") && refused.contains(part), "{refused}");
    }
    assert!(DirtyLog::map(File::open("/dev/null").unwrap(), 0, 4096, false).is_err());
}

/// Rows: C7.
#[test]
fn a_log_that_is_truncated_is_broken_and_kills_nobody() {
    let file = file(8192);
    let log = Arc::new(log_of(&file, 0, 8192).unwrap());
    let logging = Logging::default();
    logging.turn(Some(&log));
    file.set_len(0).unwrap();
    assert!(!logging.is_broken());
    logging.mark([(Gpa(1 << 27), 1)]);
    assert!(logging.is_broken());
    logging.turn(None);
    assert!(!logging.is_broken(), "nothing is lost while nothing is marked");
}

#[test]
fn a_log_covers_whole_pages() {
    let log = log_of(&file(4096), 0, 2).unwrap();
    assert!(log.covers(16 << 12) && log.covers(0) && !log.covers((16 << 12) + 1) && !log.covers(u64::MAX));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Rows: C7.
    #[test]
    fn what_a_queue_notes_is_marked_once_it_settles(
        groups in proptest::collection::vec(proptest::collection::vec((0_usize..0x7_0000, 1_u32..0x3000), 0..60), 1..4),
        skew in prop_oneof![Just(0_usize), Just(0x800)],
    ) {
        const FIRST: usize = 7;
        const BASE: u64 = (FIRST as u64) << 12;
        let memory = file(0x8_0000);
        let spec = RegionSpec { gpa: BASE + skew as u64, uva: 0, size: 0x8_0000, mmap_offset: 0, file: memory };
        let map = GuestMap::map(vec![spec], false).unwrap();
        let host = map.translate_whole(Iova(BASE + skew as u64), 1, Access::WRITE).unwrap().start;
        let file = file(64);
        let logging = Arc::new(Logging::default());
        logging.turn(Some(&Arc::new(log_of(&file, 0, 64).unwrap())));
        let mut marks = Marks::new(Arc::clone(&logging));
        for writes in groups {
            for &(at, len) in &writes {
                marks.note(&map, host.wrapping_add(at), len);
            }
            marks.settle();
            let mut naive = [false; 512];
            for (at, len) in writes {
                let first = at + skew;
                (first..first + len as usize).for_each(|byte| naive[FIRST + byte / 4096] = true);
            }
            let naive: Vec<u64> = (0..).zip(naive).filter(|(_, is_marked)| *is_marked).map(|(page, _)| page).collect();
            prop_assert_eq!(bits(&file, 0, 64), naive);
            // Fetched: what is written again has to be marked again.
            file.write_all_at(&[0; 64], 0).unwrap();
        }
    }
}

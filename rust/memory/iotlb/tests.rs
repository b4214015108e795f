use std::collections::BTreeMap;

use proptest::prelude::*;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::*;

fn iotlb() -> Iotlb {
    Iotlb::new(EventFd::new(EFD_NONBLOCK).unwrap())
}

fn mapping(page: u64, pages: u64, into: u64, access: Access) -> Mapping {
    Mapping { iova: page * PAGE, size: pages * PAGE, region: 0, into: into * PAGE, access }
}

fn put(iotlb: &Iotlb, mapping: Mapping) -> bool {
    iotlb.replace(mapping.iova, mapping.end(), &[mapping]).unwrap().is_some()
}

/// What is said of each page of a space so small that everything meets: where it is, and what may be done there.
type Pages = BTreeMap<u64, (u64, Access)>;

/// One change: pages from a first one on, and where they go; None takes them back.
fn change() -> impl Strategy<Value = (u64, u64, Option<(u64, Access)>)> {
    let access = (1..=3_u8).prop_map(|bits| Access::from_bits(bits).unwrap());
    // Half of them go where their neighbours go, so that they merge.
    let place = prop_oneof![Just(1000_u64), 0..2000_u64];
    (0..200_u64, 1..30_u64, proptest::option::of((place, access)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Rows: A14, C9.
    #[test]
    fn the_table_says_what_a_list_of_all_pages_says(changes in proptest::collection::vec(change(), 1..60)) {
        let (iotlb, mut pages) = (iotlb(), Pages::new());
        for (first, count, to) in changes {
            let before = pages.clone();
            let (generation, from, end) = (iotlb.generation(), first * PAGE, (first + count) * PAGE);
            let to = to.map(|(place, access)| (place + first, access));
            let is_less = match to {
                Some((place, access)) => put(&iotlb, mapping(first, count, place, access)),
                None => iotlb.replace(from, end, &[]).unwrap().is_some(),
            };
            let mut lost = Vec::new();
            for page in first..first + count {
                let now = to.map(|(place, access)| (place + page - first, access));
                if let Some((place, access)) = pages.remove(&page)
                    && !now.is_some_and(|(new, may)| new == place && may.allows(access))
                {
                    lost.push(page);
                }
                pages.extend(now.map(|now| (page, now)));
            }
            for page in 0..240 {
                let said = iotlb.find(page * PAGE + 7, Access::READ).map(|m| (m.into + page * PAGE - m.iova) / PAGE);
                let want = pages.get(&page).filter(|(_, access)| access.allows(Access::READ)).map(|&(place, _)| place);
                prop_assert_eq!(said, want, "page {}", page);
            }
            prop_assert_eq!(is_less, !lost.is_empty());
            prop_assert_eq!(iotlb.generation(), generation + u64::from(is_less));
            let mut gone = Vec::new();
            let is_known = iotlb.each_gone_since(generation, |m| gone.extend(m.iova / PAGE..m.end() / PAGE));
            gone.sort_unstable();
            prop_assert!(!is_known || gone == lost, "{:?} instead of {:?} of {:?}", gone, lost, before);
            // Neighbours that go on in each other are one.
            let runs = pages.iter().filter(|(page, (place, access))| {
                page.checked_sub(1).and_then(|page| pages.get(&page)) != Some(&(place.wrapping_sub(1), *access))
            });
            prop_assert!(iotlb.count() >= runs.clone().count());
            prop_assert!(iotlb.count() <= runs.count() + iotlb.table.load().chunks.len());
        }
    }
}

/// Rows: A14, C9.
#[test]
fn ten_thousand_scattered_pages_are_found_and_taken_back_one_by_one() {
    let iotlb = iotlb();
    // In an order that is neither up nor down.
    for at in (0..10_000).map(|n| n * 7919 % 10_000) {
        put(&iotlb, mapping(2 * at, 1, 20_000 - at, Access::BOTH));
    }
    assert_eq!(iotlb.count(), 10_000);
    let table = iotlb.table.load_full();
    assert!(table.chunks.iter().all(|chunk| (1..=CHUNK).contains(&chunk.mappings.len())));
    assert!(table.chunks.len() < 400, "{} chunks", table.chunks.len());
    for at in 0..10_000 {
        assert_eq!(iotlb.find(2 * at * PAGE, Access::WRITE).unwrap().into, (20_000 - at) * PAGE);
        assert!(iotlb.find((2 * at + 1) * PAGE, Access::WRITE).is_none());
    }
    for at in 0..10_000 {
        assert!(iotlb.replace(2 * at * PAGE, (2 * at + 1) * PAGE, &[]).unwrap().is_some());
    }
    assert_eq!((iotlb.count(), iotlb.table.load().chunks.len()), (0, 0));
}

/// Rows: A14, C9, C13.
#[test]
fn more_mappings_than_there_may_be_are_refused_and_change_nothing() {
    let iotlb = iotlb();
    for at in 0..MAPPINGS_MAX as u64 {
        put(&iotlb, mapping(2 * at, 1, 4 * at, Access::BOTH));
    }
    let one_more = mapping(2 * MAPPINGS_MAX as u64, 1, 1, Access::BOTH);
    let refused = iotlb.replace(one_more.iova, one_more.end(), &[one_more]).unwrap_err();
    assert!(refused.to_string().contains("huge pages"), "{refused}");
    assert!(iotlb.find(one_more.iova, Access::READ).is_none());
    assert_eq!(iotlb.count(), MAPPINGS_MAX);
    // Room is made by what is taken back.
    iotlb.replace(0, PAGE, &[]).unwrap();
    put(&iotlb, one_more);
}

/// Rows: A14.
#[test]
fn what_is_wanted_is_taken_once_and_rings_once() {
    let bell = EventFd::new(EFD_NONBLOCK).unwrap();
    let iotlb = Iotlb::new(bell.try_clone().unwrap());
    for _ in 0..3 {
        iotlb.want(0x5123, Access::READ, Need::Now);
        iotlb.want(0x5fff, Access::READ, Need::Now);
        iotlb.want(0x5000, Access::WRITE, Need::Now);
    }
    assert_eq!(bell.read().unwrap(), 1);
    let taken = || {
        let mut taken = Vec::new();
        iotlb.take_wanted(|page, access, _| taken.push((page, access)));
        taken.sort_unstable();
        taken
    };
    assert_eq!(taken(), [(0x5000, Access::READ), (0x5000, Access::WRITE)]);
    assert_eq!(taken(), []);
    // More than there is room for: some have to be asked for again.
    (0..10_000).for_each(|page| iotlb.want(page * PAGE, Access::READ, Need::Now));
    let count = taken().len();
    assert!((WANTED / 2..=WANTED).contains(&count), "{count}");
}

/// Rows: A14.
#[test]
fn what_somebody_waits_for_is_asked_before_what_will_be_needed() {
    let iotlb = iotlb();
    for page in 0..64 {
        iotlb.want(page * PAGE, Access::WRITE, Need::Ahead);
    }
    iotlb.want(99 * PAGE, Access::READ, Need::Now);
    let mut taken = Vec::new();
    iotlb.take_wanted(|page, _, need| taken.push((page, need)));
    assert_eq!(taken[0], (99 * PAGE, Need::Now));
    assert_eq!(taken.len(), 65);
}

/// Rows: C9.
#[test]
fn a_queue_that_is_far_behind_cannot_be_told_what_is_gone() {
    let iotlb = iotlb();
    for at in 0..=REMEMBERED as u64 {
        put(&iotlb, mapping(2 * at, 1, 4 * at, Access::BOTH));
    }
    for at in 0..=REMEMBERED as u64 {
        iotlb.replace(2 * at * PAGE, (2 * at + 1) * PAGE, &[]).unwrap();
    }
    assert!(!iotlb.each_gone_since(0, |_| panic!("told in part")));
    let mut last = Vec::new();
    assert!(iotlb.each_gone_since(1, |gone| last.push(gone.iova)));
    assert_eq!(last.len(), REMEMBERED);
}

/// Rows: C9, C13.
#[test]
fn holes_that_make_too_many_mappings_of_few_take_back_all_of_them() {
    let iotlb = iotlb();
    let most = MAPPINGS_MAX as u64;
    let mut all: Vec<_> = (0..most).map(|at| mapping(4 * at, 1, 8 * at, Access::BOTH)).collect();
    all[0].size = 3 * PAGE;
    assert_eq!(iotlb.replace(0, 4 * most * PAGE, &all).unwrap(), None);
    let generation = iotlb.generation();
    // Its end makes no more of them.
    assert_eq!(iotlb.replace(2 * PAGE, 3 * PAGE, &[]).unwrap(), Some(2 * PAGE..3 * PAGE));
    assert_eq!(iotlb.count(), MAPPINGS_MAX);
    put(&iotlb, mapping(2, 1, 2, Access::BOTH));
    // The middle does.
    assert_eq!(iotlb.replace(PAGE, 2 * PAGE, &[]).unwrap(), Some(ALL));
    assert_eq!((iotlb.count(), iotlb.generation()), (0, generation + 2));
    assert!(!iotlb.each_gone_since(generation, |_| panic!("told in part")));
    put(&iotlb, mapping(4, 1, 0, Access::BOTH));
    assert!(iotlb.maps(4 * PAGE, Access::WRITE));
}

/// Rows: A14, C9.
#[test]
fn nothing_is_mapped_or_wanted_after_all_of_it_was_forgotten() {
    let iotlb = iotlb();
    put(&iotlb, mapping(3, 5, 7, Access::BOTH));
    let generation = iotlb.generation();
    iotlb.want(0x5000, Access::READ, Need::Now);
    iotlb.forget();
    assert_eq!(iotlb.count(), 0);
    iotlb.take_wanted(|page, _, _| panic!("{page:#x} is wanted"));
    assert!(!iotlb.each_gone_since(generation, |_| panic!("told in part")));
}

/// Rows: C8.
#[test]
fn a_table_that_somebody_reads_is_freed_by_who_replaces_the_next() {
    let iotlb = iotlb();
    put(&iotlb, mapping(3, 5, 7, Access::BOTH));
    let (read, seen) = (iotlb.table.load(), Arc::downgrade(&iotlb.table.load_full()));
    put(&iotlb, mapping(9, 5, 7, Access::BOTH));
    drop(read);
    assert!(seen.upgrade().is_some(), "its reader freed it");
    put(&iotlb, mapping(20, 5, 7, Access::BOTH));
    assert!(seen.upgrade().is_none());
    assert!(iotlb.replaced.lock().is_empty());
}

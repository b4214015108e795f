//! The table against a naive map, under threads, floods and time.

use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

fn key(n: u64) -> Key {
    Key::new(0, Mac(0x0200_0000_0000 | n))
}

#[test]
fn lesson_missed_while_control_writes_is_learned_from_the_next_frame() {
    let (fdb, mut cache) = (Fdb::new(16, 300), crate::switch::classify::Cache::default());
    let mut head = [0; 64];
    head[11] = 7;
    let mut pass = || {
        cache.refresh(&fdb, 0);
        cache.classify(&fdb, 3, (&[crate::burst::Head(head)], 0), false, 0);
        fdb.lookup(Key::new(0, Mac(7)), 0)
    };
    let control = fdb.writer.lock();
    assert_eq!(pass(), None);
    drop(control);
    assert_eq!(pass(), Some(3));
}

#[test]
fn looking_at_the_table_keeps_nobody_from_learning() {
    let fdb = Fdb::new(16, 300);
    fdb.learn(key(1), 3, 0);
    let _control = fdb.writer.lock();
    assert_eq!(fdb.list(5), [Learned { key: key(1), port: 3, age_s: 5 }]);
}

#[test]
fn thread_whose_second_is_not_over_believes_what_another_learned_in_the_next() {
    let fdb = Fdb::new(16, 15);
    fdb.learn(key(1), 3, 8);
    assert_eq!(fdb.lookup(key(1), 7), Some(3));
    assert_eq!(fdb.learn(key(1), 3, 7), Learning::Known);
    assert_eq!(fdb.list(8), [Learned { key: key(1), port: 3, age_s: 0 }], "and no older for it");
    fdb.sweep(7);
    assert_eq!(fdb.len(), 1);
}

#[test]
fn threads_that_learn_at_once_leave_a_table_that_is_whole() {
    const THREADS: u64 = 4;
    let fdb = Fdb::new(512, 300);
    let known = key(9_999);
    fdb.learn(known, 7, 0);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let fdb = &fdb;
            scope.spawn(move || {
                let own_port = PortId::try_from(thread).unwrap();
                for round in 0..20_000_u32 {
                    // Addresses of one's own, some that all fight for, more than fit, and one that is refreshed.
                    let n = u64::from(round) * 7 % 200;
                    fdb.learn(key(1 + thread * 200 + n), own_port, round / 1000);
                    fdb.learn(key(5_000 + n % 10), own_port, round / 1000);
                    fdb.learn(known, 7, round / 1000);
                    let found = fdb.lookup(key(1 + thread * 200 + n), round / 1000);
                    assert!(found.is_none_or(|port| port == own_port), "nobody else has that address");
                    let shared = fdb.lookup(key(5_000 + n % 10), round / 1000);
                    assert!(shared.is_none_or(|port| u64::from(port) < THREADS));
                    if round % 4_000 == 0 {
                        fdb.flush_port(own_port);
                    }
                }
            });
        }
    });
    let listed = fdb.list(20);
    assert_eq!(listed.len(), fdb.len());
    assert!(fdb.len() <= 512);
    let mut keys: Vec<u64> = listed.iter().map(|learned| learned.key.0).collect();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), listed.len(), "no address twice");
    let writer = fdb.writer.lock();
    for port in 0..8_u16 {
        let behind = listed.iter().filter(|learned| learned.port == port).count();
        assert_eq!(writer.per_port[usize::from(port)] as usize, behind, "port {port}");
    }
}

#[test]
fn last_port_seen_wins() {
    let fdb = Fdb::new(16, 300);
    fdb.learn(key(1), 3, 0);
    let before = fdb.generation();
    fdb.learn(key(1), 4, 1);
    assert_eq!(fdb.lookup(key(1), 1), Some(4));
    assert_ne!(fdb.generation(), before, "caches must notice a move");
    assert_eq!(fdb.len(), 1);
}

#[test]
fn same_mac_in_two_vlans_is_two_addresses() {
    let fdb = Fdb::new(16, 300);
    fdb.learn(Key::new(1, Mac(7)), 1, 0);
    fdb.learn(Key::new(2, Mac(7)), 2, 0);
    assert_eq!(fdb.lookup(Key::new(1, Mac(7)), 0), Some(1));
    assert_eq!(fdb.lookup(Key::new(2, Mac(7)), 0), Some(2));
}

#[test]
fn addresses_age_out() {
    let fdb = Fdb::new(16, 15);
    fdb.learn(key(1), 3, 100);
    assert_eq!(fdb.lookup(key(1), 115), Some(3));
    assert_eq!(fdb.lookup(key(1), 116), None);
    fdb.sweep(116);
    assert_eq!(fdb.len(), 0);
}

#[test]
fn table_holds_as_many_as_it_promises() {
    let fdb = Fdb::new(8192, 300);
    for n in 0..8192 {
        fdb.learn(key(n * 7919), 1, 0);
    }
    assert_eq!(fdb.len(), 8192, "where both buckets of an address are full, another makes room");
    assert_eq!(fdb.stats.evicted.load(Ordering::Relaxed), 0);
    let hits = (0..8192).filter(|n| fdb.lookup(key(n * 7919), 0) == Some(1)).count();
    assert_eq!(hits, fdb.len());
}

#[test]
fn flood_from_one_port_leaves_the_others_their_addresses() {
    let fdb = Fdb::new(1000, 300);
    for n in 0..100 {
        fdb.learn(key(n), 1, 0);
    }
    for n in 1000..50_000 {
        fdb.learn(key(n), 2, 1);
    }
    let kept = (0..100).filter(|&n| fdb.lookup(key(n), 1) == Some(1)).count();
    assert!(kept >= 95, "only {kept} of 100 quiet addresses survived");
    assert!(fdb.len() <= 1000);
}

#[test]
fn flush_of_a_port_forgets_only_its_own() {
    let fdb = Fdb::new(64, 300);
    fdb.learn(key(1), 1, 0);
    fdb.learn(key(2), 2, 0);
    fdb.flush_port(1);
    assert_eq!((fdb.lookup(key(1), 0), fdb.lookup(key(2), 0)), (None, Some(2)));
}

proptest! {
    #[test]
    fn agrees_with_a_naive_map(ops in proptest::collection::vec((0u64..200, 0u16..8), 0..500)) {
        let fdb = Fdb::new(256, 300);
        let mut naive = HashMap::new();
        for (n, port) in ops {
            fdb.learn(key(n + 1), port, 5);
            naive.insert(n + 1, port);
        }
        // Two full buckets at once are rare, and then somebody is given up: counted, never wrong.
        let mut missing = 0;
        for (n, port) in &naive {
            match fdb.lookup(key(*n), 5) {
                Some(found) => prop_assert_eq!(found, *port),
                None => missing += 1,
            }
        }
        prop_assert!(missing <= 2 && missing <= fdb.stats.evicted.load(Ordering::Relaxed), "{} missing", missing);
        let naive_len = naive.len() - usize::try_from(missing).unwrap();
        prop_assert_eq!(fdb.len(), naive_len);
        prop_assert_eq!(fdb.list(5).len(), naive_len);
    }
}

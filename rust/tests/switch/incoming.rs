// SPDX-License-Identifier: Apache-2.0
//! Incoming memory without a switch around it: which pages are asked for, and which come by themselves.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::thread;

use ovsvhost::memory::{Access, GuestMap, Incoming, Iova, Unreachable};
use ovsvhost::sys::file;
use ovsvhost::testing::become_nobody;
use ovsvhost::testing::memory::{Backing, GuestRam, MissingPages, RegionSpec, Userfault};

use super::rig::wait;

const PAGE: u64 = 4096;
const PAGES: u64 = 64;

/// Memory whose pages begin with their numbers, taken away; nobody but its owner may look into it.
fn elsewhere() -> (GuestRam, MissingPages) {
    let ram = GuestRam::new(&RegionSpec::spread(1, (PAGES * PAGE) as usize, &Backing::Memfd)).unwrap();
    let region = &ram.regions()[0];
    (0..PAGES as usize).for_each(|page| region.window().store_u64(page * PAGE as usize, page as u64));
    region.file().set_permissions(Permissions::from_mode(0o600)).unwrap();
    let missing = ram.take_away().unwrap();
    (ram, missing)
}

/// A side that brings, and the source it brings from.
struct Rig {
    incoming: Arc<Incoming>,
    map: GuestMap,
    missing: MissingPages,
    theirs: Userfault,
    bases: [u64; 1],
}

impl Rig {
    fn new(ram: &GuestRam, missing: MissingPages) -> Self {
        let incoming = Arc::new(Incoming::new().unwrap());
        let region = &ram.regions()[0];
        let (uva, size) = (region.user_address(), region.size() as u64);
        let spec = ovsvhost::memory::RegionSpec {
            gpa: 0,
            uva,
            size,
            mmap_offset: 0,
            file: region.file().try_clone().unwrap(),
        };
        let map = GuestMap::map_incoming(vec![spec], false, Some(&incoming)).unwrap();
        let theirs = Userfault::from(file::duplicate(incoming.fd()).unwrap());
        let bases = [map.base_of(0, uva, size)];
        Self { incoming, map, missing, theirs, bases }
    }

    fn place(&mut self, page: usize) {
        self.missing.place(&self.theirs, &self.bases, 0, page);
    }

    fn is_here(&self, page: u64) -> bool {
        match self.map.translate_whole(Iova(page * PAGE), 8, Access::READ) {
            Ok(_) => true,
            Err(Unreachable::Absent) => false,
            Err(Unreachable::Outside | Unreachable::Unmapped) => panic!("page {page} is in no region"),
        }
    }

    /// The page that somebody sleeps for.
    fn asked(&self) -> Option<usize> {
        self.theirs.fault().map(|address| self.missing.find(&self.bases, address).unwrap().1)
    }

    /// Page 7 comes by itself; page 3 when it is wanted.
    fn bring_two(&mut self) {
        assert!(!self.is_here(3));
        let mut asked = None;
        wait("the page to be asked for", || {
            asked = self.asked();
            asked.is_some()
        });
        assert_eq!(asked, Some(3));
        self.place(3);
        wait("the page", || self.is_here(3));
    }

    fn end(self, server: thread::JoinHandle<()>) {
        self.incoming.end();
        server.join().unwrap();
    }
}

fn serve(rig: &Rig) -> thread::JoinHandle<()> {
    let incoming = Arc::clone(&rig.incoming);
    thread::spawn(move || incoming.serve(|| {}))
}

/// Rows: A15.
#[test]
fn pages_that_come_by_themselves_are_seen_and_no_other_is_asked_for() {
    let (ram, missing) = elsewhere();
    let mut rig = Rig::new(&ram, missing);
    rig.place(7);
    let server = serve(&rig);
    rig.bring_two();
    // Nobody wanted page 7.
    wait("the page that came by itself", || rig.incoming.progress().missing == PAGES - 2);
    assert!(rig.is_here(7));
    assert_eq!((rig.asked(), rig.incoming.progress().faults), (None, 1));
    rig.end(server);
}

/// Rows: A15, C8.
#[test]
fn who_waits_for_a_page_looks_again_when_it_came_and_not_for_those_that_nobody_wants() {
    let (ram, missing) = elsewhere();
    let mut rig = Rig::new(&ram, missing);
    let server = serve(&rig);
    assert!(!rig.is_here(3));
    wait("the page to be asked for", || rig.asked() == Some(3));
    assert_eq!(rig.map.arrived(), 0);
    rig.place(3);
    wait("the page", || rig.map.arrived() == 1);
    assert!(rig.is_here(3));
    (10..40).for_each(|page| rig.place(page));
    wait("the pages that came by themselves", || rig.incoming.progress().missing == PAGES - 31);
    assert_eq!(rig.map.arrived(), 1);
    assert!(rig.is_here(20));
    rig.end(server);
}

/// Rows: A9, A15.
#[test]
fn where_the_kernel_does_not_say_what_came_a_page_is_known_once_it_is_wanted() {
    let (ram, missing) = elsewhere();
    // Its own thread: what it gives up, it does not get back.
    let stranger = move || {
        if become_nobody().is_err() {
            eprintln!("skipped: only root can become a stranger to its own files");
            return;
        }
        let mut rig = Rig::new(&ram, missing);
        rig.place(7);
        let server = serve(&rig);
        rig.bring_two();
        wait("the page that is there already", || rig.is_here(7));
        assert_eq!(rig.incoming.progress().missing, PAGES - 2);
        assert_eq!((rig.asked(), rig.incoming.progress().faults), (None, 1));
        rig.end(server);
    };
    thread::spawn(stranger).join().unwrap();
}

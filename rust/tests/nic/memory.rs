// SPDX-License-Identifier: Apache-2.0
//! What guest memory is made of, and whether a device may be shown it: to show it is to make every page of it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use ovsvhost::testing::memory::{Backing, GuestRam, RegionSpec};
use vmm_sys_util::tempdir::TempDir;

use super::cable::{Cable, join, with_queues_to_send};
use super::rig::{Switch, wait};
use super::station::Station;
use super::zero_copy::{guest_of, introduce, joins, marked, not_copied, state, wait_active};

const HUGE: usize = 2 << 20;

/// Bytes that a guest's memory has.
fn held(guest: &Station) -> u64 {
    guest.frontend.ram().regions().iter().map(|region| region.file().metadata().unwrap().blocks() * 512).sum()
}

/// Bytes that it may have.
fn size(guest: &Station) -> u64 {
    guest.frontend.ram().regions().iter().map(|region| region.size() as u64).sum()
}

/// Sends a frame; gives whether it was copied.
fn is_copied(switch: &Switch, guest: &mut Station, cable: &mut Cable) -> bool {
    introduce(cable, guest);
    let (before, frame) = (not_copied(switch), marked(guest, 1400, 1));
    guest.send(&frame);
    while cable.next() != frame {}
    guest.wait_sent();
    not_copied(switch) == before
}

/// Rows: A9, A19, C1, C13.
#[test]
fn memory_that_a_guest_has_not_used_yet_is_not_made_for_it_and_the_cure_is_named() {
    with_queues_to_send(1500, 4, |mut cable| {
        let mut switch = Switch::new();
        let mut guest = guest_of(&mut switch, "a", 1, 64, &RegionSpec::spread(2, 64 << 20, &Backing::Memfd));
        join(&switch, joins);
        wait("the cure", || state(&switch, "a").starts_with("Waiting(memory): 12"));
        assert!(state(&switch, "a").contains("with prealloc=on, or on hugepages"), "{}", state(&switch, "a"));
        assert!(is_copied(&switch, &mut guest, &mut cable));
        assert!(held(&guest) < size(&guest) / 8, "{} of {} bytes are there", held(&guest), size(&guest));
        // All of it in use: nothing is made any more, and nobody has to say so.
        for region in guest.frontend.ram().regions() {
            region.populate().unwrap();
        }
        wait_active(&switch, "a");
        assert!(!is_copied(&switch, &mut guest, &mut cable));
    });
}

/// Rows: A9, A19.
#[test]
fn hugepages_that_are_set_aside_for_a_guest_are_shown_before_it_has_used_them() {
    let backing = Backing::Huge2M;
    let regions = RegionSpec::spread(2, 2 * HUGE, &backing);
    if let Err(e) = GuestRam::new(&regions) {
        eprintln!("skipped: {e}: it needs 4 free hugepages of 2 MiB");
        return;
    }
    with_queues_to_send(1500, 4, move |mut cable| {
        let mut switch = Switch::new();
        let mut guest = guest_of(&mut switch, "a", 1, 64, &regions);
        assert!(held(&guest) < size(&guest));
        join(&switch, joins);
        wait_active(&switch, "a");
        assert_eq!(held(&guest), size(&guest));
        assert!(!is_copied(&switch, &mut guest, &mut cable));
    });
}

/// A hugetlbfs of so many pages; goes with this.
struct Pool(TempDir);

impl Pool {
    /// None where it cannot be had.
    fn of(pages: usize) -> Option<Self> {
        let folder = TempDir::new_with_prefix("/tmp/ovsvhost-pool-").unwrap();
        let options = format!("pagesize=2M,size={}", pages * HUGE);
        let mount = ["-t", "hugetlbfs", "-o", &options, "none"];
        let status = Command::new("mount").args(mount).arg(folder.as_path()).output().ok()?.status;
        status.success().then_some(Self(folder))
    }

    fn path(&self) -> &Path {
        self.0.as_path()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).output();
    }
}

/// Rows: A9, A19, C1, C12.
#[test]
fn hugepages_that_are_not_to_be_had_are_a_reason_and_no_end() {
    with_queues_to_send(1500, 4, |mut cable| {
        let Some(pool) = Pool::of(2) else {
            eprintln!("skipped: no hugetlbfs of 2 MiB pages can be mounted");
            return;
        };
        let backing = Backing::Directory(pool.path().into());
        if let Err(e) = GuestRam::new(&RegionSpec::spread(2, HUGE, &backing)) {
            eprintln!("skipped: {e}: it needs 2 free hugepages of 2 MiB");
            return;
        }
        let mut switch = Switch::new();
        let mut guest = guest_of(&mut switch, "a", 1, 64, &RegionSpec::spread(2, HUGE, &backing));
        // Given back by the guest, a balloon's way, and taken by another.
        guest.frontend.ram().regions()[1].punch().unwrap();
        let other = GuestRam::new(&RegionSpec::spread(1, HUGE, &backing)).unwrap();
        other.regions()[0].populate().unwrap();
        join(&switch, joins);
        wait("the reason", || state(&switch, "a").contains("hugepages that are free"));
        drop(other);
        let bases = guest.frontend.stop_rings().unwrap();
        guest.resume(&bases);
        wait_active(&switch, "a");
        assert!(!is_copied(&switch, &mut guest, &mut cable));
    });
}

// SPDX-License-Identifier: Apache-2.0
//! Guest memory of every kind and in every form it is announced in.

use std::fs;
use std::path::PathBuf;

use ovsvhost::vhost::EndpointKind;

use super::rig::{Switch, wait};
use super::traffic::{Crew, end};

fn crosses(settings: &[(&str, &str)]) {
    let mut switch = Switch::new();
    let all = [&[("sizes", "mix"), ("layout", "two")], settings].concat();
    let mut crew = Crew::pair(&mut switch, EndpointKind::Client, &all);
    crew.send(0, 1, 60);
    crew.send(1, 0, 60);
    crew.assert_exact(0, 1);
    crew.assert_exact(1, 0);
}

/// Rows: A9.
#[test]
fn one_table_or_one_region_at_a_time_is_the_same_memory() {
    for form in ["table", "regions"] {
        for regions in ["1", "3", "8"] {
            crosses(&[("memory-message", form), ("regions", regions), ("ring-size", "64")]);
        }
    }
}

/// Pages of a size that can be had, raised to `want` if they can be; the count is never lowered.
fn pages(kib: usize, want: usize) -> usize {
    let folder = PathBuf::from(format!("/sys/kernel/mm/hugepages/hugepages-{kib}kB"));
    let read = |name: &str| -> usize {
        fs::read_to_string(folder.join(name)).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    };
    let missing = want.saturating_sub(read("free_hugepages"));
    if missing > 0 {
        // Without the right or the memory for it, what is there has to do.
        let _ = fs::write(folder.join("nr_hugepages"), (read("nr_hugepages") + missing).to_string());
    }
    read("free_hugepages")
}

/// Rows: A9.
#[test]
fn pages_of_two_mebibytes_carry_frames() {
    if pages(2_048, 40) < 40 {
        eprintln!("skipped: 40 free hugepages of 2 MiB are missing (/proc/sys/vm/nr_hugepages)");
        return;
    }
    crosses(&[("memory", "huge2m"), ("regions", "2")]);
}

/// Rows: A9.
#[test]
fn pages_of_one_gibibyte_carry_frames() {
    if pages(1_048_576, 2) < 2 {
        eprintln!("skipped: 2 free hugepages of 1 GiB are missing (boot with hugepagesz=1G hugepages=2)");
        return;
    }
    crosses(&[("memory", "huge1g")]);
}

/// Waits until the port's error has these words: for a moment, between its front-end's bind and its listen, it has others.
fn wait_error(crew: &mut Crew, switch: &Switch, words: &[&str]) {
    let has_all = |error: String| words.iter().all(|word| error.contains(word));
    crew.until("the port to say what is wrong", |_| switch.port("a").error.is_some_and(has_all));
}

/// Rows: A9, C1.
#[test]
fn private_memory_is_named_and_the_cure_too() {
    let mut switch = Switch::new();
    let socket = switch.add("a", EndpointKind::Client);
    let mut crew = Crew { ends: vec![end(0, &socket, EndpointKind::Client, &[("memory", "private")])] };
    wait_error(&mut crew, &switch, &["private", "share=on"]);
    assert!(!switch.port("a").link_up);
}

#[test]
fn memory_on_a_disk_is_refused_unless_it_is_allowed() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let on_disk = [("memory", folder.to_str().unwrap())];
    let mut switch = Switch::new();
    let socket = switch.add("a", EndpointKind::Client);
    let mut crew = Crew { ends: vec![end(0, &socket, EndpointKind::Client, &on_disk)] };
    if crew.ends[0].last_error().is_some() {
        eprintln!("skipped: {} takes no unlinked file", folder.display());
        return;
    }
    wait_error(&mut crew, &switch, &["allow-file-memory=true"]);
    switch.delete("a");
    drop(crew);
    let socket = switch.add_with("a", EndpointKind::Client, |port| port.allow_file_memory = true);
    let mut crew = Crew { ends: vec![end(0, &socket, EndpointKind::Client, &on_disk)] };
    crew.until("the link", |_| switch.port("a").link_up);
    wait("no error", || switch.port("a").error.is_none());
}

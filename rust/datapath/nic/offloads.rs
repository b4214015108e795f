//! What a device does to the frames that it receives and must not do while they are ours: then it is switched off.
//!
//! A driver that takes the VLAN tag off keeps it beside the frame, where an XDP program does not see it: a tagged frame would
//! come in as an untagged one. Frames that it joined are not what was on the wire.

use crate::sys::netdev::Asker;

/// By the kernel's names; what they do; how `ethtool -K` calls them.
const UNWANTED: [(&str, &str, &str); 4] = [
    ("rx-vlan-hw-parse", "takes VLAN tags off", "rxvlan"),
    ("rx-vlan-stag-hw-parse", "takes service VLAN tags off", "rx-vlan-stag-hw-parse"),
    ("rx-lro", "joins frames", "lro"),
    ("rx-gro-hw", "joins frames", "rx-gro-hw"),
];

/// What was switched off at a device, until it is [restored](Self::restore).
#[derive(Debug)]
pub(super) struct Offloads {
    pub netdev: String,
    /// The device: another of its name was never switched.
    pub index: u32,
    were_on: Vec<&'static str>,
}

impl Offloads {
    /// Switches off what is on. Gives also what stayed on nevertheless, a sentence with the cure.
    pub(super) fn switch_off(asker: &Asker, netdev: &str, index: u32) -> (Self, Option<String>) {
        let names = UNWANTED.map(|(name, _, _)| name);
        // A device that tells of no features has none.
        let mut were_on = asker.features_on(netdev, &names).unwrap_or_default();
        let mut complaint = None;
        if !were_on.is_empty() {
            let refused = asker.set_features(netdev, &were_on, false).err();
            let left = asker.features_on(netdev, &were_on).unwrap_or_default();
            were_on.retain(|name| !left.contains(name));
            complaint = left.first().and_then(|name| UNWANTED.iter().find(|(known, _, _)| known == name)).map(
                |(_, does, switch)| {
                    let why = refused.map_or_else(|| "its driver keeps it on".to_owned(), |e| e.to_string());
                    format!(
                        "{netdev} {does}, and that cannot be switched off ({why}): ethtool -K {netdev} {switch} off, or \
                         type=system, which does without"
                    )
                },
            );
        }
        (Self { netdev: netdev.to_owned(), index, were_on }, complaint)
    }

    /// Switches on again what was on, if the device is still there.
    pub(super) fn restore(self, asker: &Asker) {
        let is_there = asker.find(&self.netdev).is_ok_and(|found| found.is_some_and(|found| found.index == self.index));
        if is_there && !self.were_on.is_empty() {
            // It was on before, so it can be; if not, that is whoever changed it since.
            let _ = asker.set_features(&self.netdev, &self.were_on, true);
        }
    }
}

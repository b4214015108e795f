//! Queues of a device that guests may have for themselves: those above its port's own, as many as there are, where sending
//! from guest memory is worth one.
//!
//! ```text
//!   queue   0 … start_queue … │ start_queue + n_rxq …            │ …
//!           the host's        │ the port's    guests', on demand: at most zc_queues, and no more than there are
//! ```

use super::NicDevice;
use crate::port::afxdp::Mode;
use crate::sys::netdev::TxQueues;

/// What there is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Spare {
    /// How many.
    pub queues: u32,
    /// What to say to who gets none: a state, the reason, and the cure where there is one.
    pub lack: String,
}

impl Spare {
    /// `mode` is the one that the device is in. `tx` is what the driver tells; who does not tell is asked for a queue, and
    /// will say if there is none.
    pub(super) fn of(device: &NicDevice, mode: Mode, tx: Option<TxQueues>) -> Self {
        let NicDevice { netdev, zc_queues, .. } = device;
        if device.least(mode).is_none() {
            let lack = format!(
                "Suspended(copy): the kernel copies what {netdev} sends (xdp-mode {}), and is quicker with what we copied \
                 than with guest memory; use a driver that can native-with-zerocopy, or set xdp-zc-min of {netdev} to have \
                 it all the same",
                mode.name()
            );
            return Self { queues: 0, lack };
        }
        let above = |tx: TxQueues| tx.count.saturating_sub(device.start_queue + device.n_rxq);
        let queues = tx.map_or(*zc_queues, |tx| above(tx).min(*zc_queues));
        let why = match tx {
            _ if *zc_queues == 0 => format!("xdp-zc-queues of {netdev} is 0: remove it"),
            Some(TxQueues { count, max, kind }) if queues < *zc_queues && count < max => {
                let one_more = format!("ethtool -L {netdev} {kind} {}", count + 1);
                format!("every queue of {netdev} ({count}) is taken; give it more ({one_more})")
            }
            Some(TxQueues { count, .. }) if queues < *zc_queues => {
                let cure = if device.n_rxq > 1 { "; lower its n_rxq" } else { "" };
                format!("every queue of {netdev} ({count}) is taken, and it can have no more{cure}")
            }
            _ => format!("every queue of {netdev} is taken; raise its xdp-zc-queues"),
        };
        Self { queues, lack: format!("Waiting(queue): {why}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spare_in(mode: Mode, change: impl FnOnce(&mut NicDevice), count: u32, max: u32) -> (u32, String) {
        let mut device = NicDevice::new("eth0");
        change(&mut device);
        let Spare { queues, lack } = Spare::of(&device, mode, Some(TxQueues { count, max, kind: "combined" }));
        (queues, lack)
    }

    fn spare(change: impl FnOnce(&mut NicDevice), count: u32, max: u32) -> (u32, String) {
        spare_in(Mode::NativeWithZerocopy, change, count, max)
    }

    /// Rows: A19.
    #[test]
    fn guests_may_have_every_queue_above_the_ports_own_unless_somebody_said_how_many() {
        assert_eq!(spare(|_| {}, 4, 8).0, 3);
        assert_eq!(spare(|device| (device.n_rxq, device.start_queue) = (2, 1), 4, 8).0, 1);
        assert_eq!(spare(|device| device.n_rxq = 4, 4, 4).0, 0);
        assert_eq!(spare(|device| device.zc_queues = 2, 4, 8).0, 2);
        assert_eq!(spare(|device| device.zc_queues = 0, 4, 8).0, 0);
        let silent = NicDevice { zc_queues: 2, ..NicDevice::new("eth0") };
        assert_eq!(Spare::of(&silent, Mode::NativeWithZerocopy, None).queues, 2);
    }

    /// Rows: A19.
    #[test]
    fn where_the_kernel_copies_guests_have_queues_only_if_somebody_said_for_which_frames() {
        for mode in [Mode::Native, Mode::Generic] {
            let (queues, lack) = spare_in(mode, |_| {}, 4, 8);
            assert_eq!(queues, 0);
            let text = format!("Suspended(copy): the kernel copies what eth0 sends (xdp-mode {})", mode.name());
            assert!(lack.starts_with(&text), "{lack}");
            assert_eq!(spare_in(mode, |device| device.zc_min = 1500, 4, 8).0, 3);
        }
    }

    /// Rows: A19, C1.
    #[test]
    fn who_gets_none_is_told_the_cure() {
        let told = |change: fn(&mut NicDevice), count, max| spare(change, count, max).1;
        for (text, cure) in [
            (told(|_| {}, 1, 4), "every queue of eth0 (1) is taken; give it more (ethtool -L eth0 combined 2)"),
            (told(|_| {}, 4, 4), "every queue of eth0 (4) is taken, and it can have no more"),
            (told(|d| d.n_rxq = 2, 2, 2), "every queue of eth0 (2) is taken, and it can have no more; lower its n_rxq"),
            (told(|d| d.zc_queues = 2, 4, 8), "every queue of eth0 is taken; raise its xdp-zc-queues"),
            (told(|d| d.zc_queues = 0, 4, 8), "xdp-zc-queues of eth0 is 0: remove it"),
        ] {
            assert_eq!(text, format!("Waiting(queue): {cure}"));
        }
    }
}

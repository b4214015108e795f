// SPDX-License-Identifier: Apache-2.0
//! Feature bits by name: virtio-net's, the ring's and vhost-user's protocol bits.

use crate::testing::{Error, Result};

macro_rules! bits {
    ($table:ident, $what:literal, $($name:ident = $bit:literal),* $(,)?) => {
        $(#[doc = concat!("The `", stringify!($name), "` bit.")]
        pub const $name: u64 = 1 << $bit;)*

        #[doc = concat!("Names of ", $what, ".")]
        pub const $table: &[(&str, u64)] = &[$((stringify!($name), $name)),*];
    };
}

bits! {
    VIRTIO, "virtio and virtio-net feature bits",
    CSUM = 0, GUEST_CSUM = 1, CTRL_GUEST_OFFLOADS = 2, MTU = 3, MAC = 5, GSO = 6, GUEST_TSO4 = 7, GUEST_TSO6 = 8, GUEST_ECN = 9,
    GUEST_UFO = 10, HOST_TSO4 = 11, HOST_TSO6 = 12, HOST_ECN = 13, HOST_UFO = 14, MRG_RXBUF = 15,
    STATUS = 16, CTRL_VQ = 17, CTRL_RX = 18, GUEST_ANNOUNCE = 21, MQ = 22, LOG_ALL = 26,
    INDIRECT_DESC = 28, EVENT_IDX = 29, PROTOCOL_FEATURES = 30, VERSION_1 = 32,
    IOMMU_PLATFORM = 33, RING_PACKED = 34, IN_ORDER = 35, RING_RESET = 40,
    GUEST_USO4 = 54, GUEST_USO6 = 55, HOST_USO = 56,
}

/// vhost-user protocol feature bits, apart because some share a name with a virtio bit.
pub mod protocol {
    bits! {
        PROTOCOL, "vhost-user protocol feature bits",
        MQ = 0, LOG_SHMFD = 1, RARP = 2, REPLY_ACK = 3, MTU = 4, BACKEND_REQ = 5, CROSS_ENDIAN = 6,
        CRYPTO_SESSION = 7, PAGEFAULT = 8, CONFIG = 9, BACKEND_SEND_FD = 10, HOST_NOTIFIER = 11,
        INFLIGHT_SHMFD = 12, RESET_DEVICE = 13, INBAND_NOTIFICATIONS = 14, CONFIGURE_MEM_SLOTS = 15,
        STATUS = 16,
    }
}

/// Reads `name+name+…` (any case) or a number into bits of `table`.
///
/// # Errors
/// `Config` naming the word that is not in the table, and the table.
pub fn parse(table: &[(&str, u64)], text: &str) -> Result<u64> {
    if let Some(hex) = text.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16)
            .map_err(|_| Error::Config(format!("feature mask '{text}' is not a number")));
    }
    text.split('+').filter(|word| !word.is_empty()).try_fold(0, |bits, word| {
        table.iter().find(|(name, _)| name.eq_ignore_ascii_case(word)).map(|(_, bit)| bits | bit).ok_or_else(|| {
            let known: Vec<String> = table.iter().map(|(name, _)| name.to_lowercase()).collect();
            Error::Config(format!("feature '{word}' is not one of {}", known.join(", ")))
        })
    })
}

/// The names of the bits that are set, lower case, `+` between them.
pub fn names(table: &[(&str, u64)], bits: u64) -> String {
    let set: Vec<String> =
        table.iter().filter(|(_, bit)| bits & bit != 0).map(|(name, _)| name.to_lowercase()).collect();
    set.join("+")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_bits_convert_both_ways() {
        let bits = parse(VIRTIO, "mrg_rxbuf+VERSION_1").unwrap();
        assert_eq!(bits, MRG_RXBUF | VERSION_1);
        assert_eq!(names(VIRTIO, bits), "mrg_rxbuf+version_1");
        assert_eq!(parse(VIRTIO, "0x3").unwrap(), 3);
    }

    #[test]
    fn an_unknown_name_is_refused() {
        assert!(parse(protocol::PROTOCOL, "mq+nonsense").is_err());
    }
}

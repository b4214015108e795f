//! Which offloads an end agreed to, by its feature bits (virtio 1.2 §5.1.3, USO as in 1.3).

use super::feature;
use crate::frame::vnet_hdr::OffloadSet;

/// What the bit of legacy drivers stands for (virtio 1.2 §5.1.3.2), on top of partial checksums.
const ANY_GSO: OffloadSet = OffloadSet::TSO4.union(OffloadSet::TSO6).union(OffloadSet::ECN).union(OffloadSet::UFO);

/// What a driver may leave to us.
pub(super) fn sent_by(features: u64) -> OffloadSet {
    let any = if features & feature::GSO != 0 && features & feature::CSUM != 0 { ANY_GSO } else { OffloadSet::NONE };
    any.union(chosen(
        features,
        &[
            (feature::CSUM, OffloadSet::CHECKSUM),
            (feature::HOST_TSO4, OffloadSet::TSO4),
            (feature::HOST_TSO6, OffloadSet::TSO6),
            (feature::HOST_ECN, OffloadSet::ECN),
            (feature::HOST_UFO, OffloadSet::UFO),
            (feature::HOST_USO, OffloadSet::USO4.union(OffloadSet::USO6)),
        ],
    ))
}

/// What a driver takes from us: without partial checksums no segmentation either (§5.1.3.1).
pub(super) fn taken_by(features: u64) -> OffloadSet {
    if features & feature::GUEST_CSUM == 0 {
        return OffloadSet::NONE;
    }
    chosen(
        features,
        &[
            (feature::GUEST_CSUM, OffloadSet::CHECKSUM),
            (feature::GUEST_TSO4, OffloadSet::TSO4),
            (feature::GUEST_TSO6, OffloadSet::TSO6),
            (feature::GUEST_ECN, OffloadSet::ECN),
            (feature::GUEST_UFO, OffloadSet::UFO),
            (feature::GUEST_USO4, OffloadSet::USO4),
            (feature::GUEST_USO6, OffloadSet::USO6),
        ],
    )
}

fn chosen(features: u64, table: &[(u64, OffloadSet)]) -> OffloadSet {
    let chosen = table.iter().filter(|(bit, _)| features & bit != 0);
    chosen.fold(OffloadSet::NONE, |set, (_, offload)| set.union(*offload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_chooses_its_own() {
        assert_eq!(sent_by(0), OffloadSet::NONE);
        assert_eq!(sent_by(u64::MAX), OffloadSet::ALL);
        assert_eq!(sent_by(feature::HOST_TSO6 | feature::CSUM), OffloadSet::TSO6.union(OffloadSet::CHECKSUM));
        assert_eq!(sent_by(feature::GSO | feature::CSUM), ANY_GSO.union(OffloadSet::CHECKSUM));
        assert_eq!(sent_by(feature::GSO), OffloadSet::NONE);
        assert_eq!(taken_by(u64::MAX), OffloadSet::ALL);
        let takes = feature::GUEST_CSUM | feature::GUEST_USO6;
        assert_eq!(taken_by(takes), OffloadSet::USO6.union(OffloadSet::CHECKSUM));
    }

    #[test]
    fn nothing_is_taken_without_partial_checksums() {
        assert_eq!(taken_by(!feature::GUEST_CSUM), OffloadSet::NONE);
    }
}

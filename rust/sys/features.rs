//! Switches of a network device by their names, as `ethtool -k` lists them and `ethtool -K` sets them.
//!
//! The kernel names them in one list and keeps them as bits in the list's order; both are asked for each time, since
//! neither is the same in two kernels.

use std::io;

use super::netdev::Asker;

const GET_STRINGS: u32 = 0x1b;
const COUNT_STRINGS: u32 = 0x37;
const GET_FEATURES: u32 = 0x3a;
const SET_FEATURES: u32 = 0x3b;
/// `ETH_SS_FEATURES`: the list of their names.
const NAMES: u32 = 4;
/// `ETH_GSTRING_LEN`.
const NAME_SIZE: usize = 32;
/// More than any kernel has: what asks for more room makes no sense.
const FEATURES_MAX: u32 = 4096;

impl Asker {
    /// Which of `names` are on at a device. A name that this kernel does not know is not.
    ///
    /// # Errors
    /// `ENODEV` without such a device, `EOPNOTSUPP` if it tells nothing.
    pub fn features_on(&self, device: &str, names: &[&'static str]) -> io::Result<Vec<&'static str>> {
        let list = self.feature_list(device)?;
        let blocks = list.len().div_ceil(32);
        let mut answer = vec![0_u32; 2 + 4 * blocks];
        answer[..2].copy_from_slice(&[GET_FEATURES, u32::try_from(blocks).unwrap_or_default()]);
        self.ethtool_words(device, &mut answer)?;
        // Of each block: what can be changed, is asked for, is on, and can never be changed.
        let is_on = |bit: usize| answer.get(2 + 4 * (bit / 32) + 2).is_some_and(|word| word >> (bit % 32) & 1 != 0);
        let place = |name: &str| list.iter().position(|known| known == name);
        Ok(names.iter().copied().filter(|name| place(name).is_some_and(is_on)).collect())
    }

    /// Asks a device to switch all of `names` on or off. What it made of it says [`Self::features_on`].
    ///
    /// # Errors
    /// As there, and `EPERM` without `CAP_NET_ADMIN`.
    pub fn set_features(&self, device: &str, names: &[&'static str], on: bool) -> io::Result<()> {
        let list = self.feature_list(device)?;
        let blocks = list.len().div_ceil(32);
        let mut request = vec![0_u32; 2 + 2 * blocks];
        request[..2].copy_from_slice(&[SET_FEATURES, u32::try_from(blocks).unwrap_or_default()]);
        for bit in names.iter().filter_map(|name| list.iter().position(|known| known == name)) {
            // Of each block: which are meant, and what they shall be.
            let at = 2 + 2 * (bit / 32);
            for (word, is_set) in request.iter_mut().skip(at).zip([true, on]) {
                *word |= u32::from(is_set) << (bit % 32);
            }
        }
        self.ethtool_words(device, &mut request)
    }

    /// Every name that this kernel knows, in the order of their bits.
    fn feature_list(&self, device: &str) -> io::Result<Vec<String>> {
        // struct ethtool_sset_info: a mask of lists in 64 bits, then the count of each that is known.
        let mut counted = [COUNT_STRINGS, 0, 1 << NAMES, 0, 0];
        self.ethtool_words(device, &mut counted)?;
        let [.., mask, _, count] = counted;
        if mask == 0 || count > FEATURES_MAX {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        let mut answer = vec![0_u32; 3 + count as usize * NAME_SIZE / 4];
        answer[..3].copy_from_slice(&[GET_STRINGS, NAMES, count]);
        self.ethtool_words(device, &mut answer)?;
        let bytes: Vec<u8> = answer.iter().skip(3).flat_map(|word| word.to_ne_bytes()).collect();
        let text = |name: &[u8]| {
            let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
            String::from_utf8_lossy(name.get(..end).unwrap_or_default()).into_owned()
        };
        Ok(bytes.chunks(NAME_SIZE).map(text).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_known_by_their_names() {
        let asker = Asker::new().unwrap();
        let on = asker.features_on("lo", &["loopback", "rx-vlan-hw-parse", "no-such-feature"]).unwrap();
        assert_eq!(on, ["loopback"]);
        let missing = asker.features_on("nosuchdevice0", &["loopback"]).unwrap_err();
        assert_eq!(missing.raw_os_error(), Some(libc::ENODEV));
    }
}

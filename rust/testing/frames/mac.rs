// SPDX-License-Identifier: Apache-2.0
//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

use crate::testing::Error;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// All stations.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// The address `count` further on, within its vendor's 2^24.
    #[must_use]
    #[inline]
    pub fn plus(self, count: u32) -> Self {
        let [a, b, c, high, middle, low] = self.0;
        let [_, high, middle, low] = u32::from_be_bytes([0, high, middle, low]).wrapping_add(count).to_be_bytes();
        Self([a, b, c, high, middle, low])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02x}", if index == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

impl FromStr for Mac {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::Config(format!("'{text}' is not an Ethernet address"));
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(wrong)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() { Err(wrong()) } else { Ok(Self(bytes)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_and_written_alike() {
        let text = "52:54:00:00:0a:ff";
        assert_eq!(text.parse::<Mac>().unwrap().to_string(), text);
        assert_eq!(text.parse::<Mac>().unwrap().plus(0x101).to_string(), "52:54:00:00:0c:00");
        assert!("52:54:00:00:0a".parse::<Mac>().is_err());
        assert!("52:54:00:00:0a:ff:00".parse::<Mac>().is_err());
    }
}

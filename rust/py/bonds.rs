//! Bonds as Python gives them and sees them.

use std::collections::BTreeMap;
use std::time::Duration;

use pyo3::prelude::*;

use crate::datapath::{self, BondConfig, BondMode, LacpConfig, LacpEnd, LacpPort, Mac};
use crate::error::{Error, Result};

/// Who we are to LACP.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(super) struct Lacp {
    active: bool,
    fast: bool,
    system: String,
    system_priority: u16,
    key: u16,
    fallback_ab: bool,
    /// By link: number, priority, key.
    ports: BTreeMap<String, (u16, u16, u16)>,
}

/// Times are `bond_updelay`, `bond_downdelay` and `bond-rebalance-interval`, ms.
pub(super) fn to_bond(
    name: String,
    mode: &str,
    times: [u64; 3],
    primary: Option<String>,
    lacp: Option<Lacp>,
) -> Result<BondConfig> {
    let Some(mode) = BondMode::named(mode) else {
        let possible = "active-backup, balance-slb and balance-tcp are possible";
        return Err(Error::Config(format!("{name}: unknown bond_mode '{mode}'; {possible}")));
    };
    let [updelay, downdelay, rebalance] = times.map(Duration::from_millis);
    let (lacp, lacp_ports) = match lacp {
        Some(lacp) => {
            let (ours, ports) = to_lacp(&name, lacp)?;
            (Some(ours), ports)
        }
        None => (None, BTreeMap::new()),
    };
    let last_active = None;
    Ok(BondConfig { name, mode, updelay, downdelay, primary, last_active, rebalance, lacp, lacp_ports })
}

fn to_lacp(bond: &str, lacp: Lacp) -> Result<(LacpConfig, BTreeMap<String, LacpPort>)> {
    let Lacp { active: is_active, fast: is_fast, system, system_priority, key, fallback_ab: falls_back, ports } = lacp;
    let Some(system) = to_mac(&system) else {
        return Err(Error::Config(format!("bond {bond}: lacp-system-id '{system}' is no Ethernet address")));
    };
    let of = |(port, port_priority, key)| LacpPort { port, port_priority, key };
    let ports = ports.into_iter().map(|(link, numbers)| (link, of(numbers))).collect();
    Ok((LacpConfig { is_active, is_fast, system, system_priority, key, falls_back }, ports))
}

/// Six bytes of two digits each, with colons.
fn to_mac(text: &str) -> Option<Mac> {
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part =
            parts.next().filter(|part| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then(|| Mac::from_bytes(bytes))
}

/// One bond at one moment.
#[pyclass(frozen, get_all, module = "ovsvhost._core")]
pub(super) struct BondState {
    name: String,
    bridge: String,
    mode: &'static str,
    updelay_ms: u64,
    downdelay_ms: u64,
    primary: Option<String>,
    active: Option<String>,
    rebalance_ms: Option<u64>,
    lacp: Option<LacpState>,
    links: Vec<BondLink>,
}

impl From<datapath::BondState> for BondState {
    fn from(state: datapath::BondState) -> Self {
        let datapath::BondState {
            name,
            bridge,
            mode,
            updelay,
            downdelay,
            primary,
            active,
            rebalance,
            lacp,
            is_negotiated,
            links,
        } = state;
        let [updelay_ms, downdelay_ms] = [updelay, downdelay].map(to_ms);
        let rebalance_ms = rebalance.map(to_ms);
        let links = links.into_iter().map(BondLink::from).collect();
        let lacp = lacp.map(|lacp| LacpState {
            active: lacp.is_active,
            fast: lacp.is_fast,
            fallback_ab: lacp.falls_back,
            negotiated: is_negotiated,
            system: lacp.system.to_string(),
            system_priority: lacp.system_priority,
            key: lacp.key,
        });
        Self { name, bridge, mode: mode.name(), updelay_ms, downdelay_ms, primary, active, rebalance_ms, lacp, links }
    }
}

/// Who a bond is to LACP.
#[pyclass(frozen, get_all, module = "ovsvhost._core")]
#[derive(Clone)]
#[allow(clippy::struct_excessive_bools, reason = "each is a property of its own in Python")]
pub(super) struct LacpState {
    active: bool,
    fast: bool,
    fallback_ab: bool,
    negotiated: bool,
    system: String,
    system_priority: u16,
    key: u16,
}

/// One link of a bond.
#[pyclass(frozen, get_all, module = "ovsvhost._core")]
#[derive(Clone)]
pub(super) struct BondLink {
    name: String,
    enabled: bool,
    may_enable: bool,
    due_ms: Option<u64>,
    shares: Vec<(usize, u64)>,
    lacp: Option<LacpLink>,
}

impl From<datapath::BondLink> for BondLink {
    fn from(link: datapath::BondLink) -> Self {
        let datapath::BondLink { name, is_enabled, may_enable, due, shares, lacp } = link;
        let (due_ms, lacp) = (due.map(to_ms), lacp.map(LacpLink::from));
        Self { name, enabled: is_enabled, may_enable, due_ms, shares, lacp }
    }
}

/// What LACP has of a link.
#[pyclass(frozen, get_all, module = "ovsvhost._core")]
#[derive(Clone)]
pub(super) struct LacpLink {
    status: &'static str,
    attached: bool,
    may_enable: bool,
    actor: LacpInfo,
    partner: LacpInfo,
}

impl From<datapath::LacpLink> for LacpLink {
    fn from(link: datapath::LacpLink) -> Self {
        let datapath::LacpLink { status, is_attached, may_enable, actor, partner } = link;
        let (actor, partner) = (actor.into(), partner.into());
        Self { status: status.name(), attached: is_attached, may_enable, actor, partner }
    }
}

/// One end of a link.
#[pyclass(frozen, get_all, module = "ovsvhost._core")]
#[derive(Clone)]
pub(super) struct LacpInfo {
    system: String,
    system_priority: u16,
    port: u16,
    port_priority: u16,
    key: u16,
    state: Vec<&'static str>,
}

impl From<LacpEnd> for LacpInfo {
    fn from(end: LacpEnd) -> Self {
        let names = datapath::lacp_state::NAMES.into_iter().enumerate();
        Self {
            system: end.system.to_string(),
            system_priority: end.system_priority,
            port: end.port,
            port_priority: end.port_priority,
            key: end.key,
            state: names.filter(|(bit, _)| end.is(1 << bit)).map(|(_, name)| name).collect(),
        }
    }
}

fn to_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_six_bytes_of_two_digits_each() {
        assert_eq!(to_mac("0a:0B:0c:0d:0e:0f"), Some(Mac(0x0a0b_0c0d_0e0f)));
        for text in
            ["", "0a:0b:0c:0d:0e", "0a:0b:0c:0d:0e:0f:10", "a:0b:0c:0d:0e:0f", "+a:0b:0c:0d:0e:0f", "0a0b0c0d0e0f"]
        {
            assert_eq!(to_mac(text), None, "{text}");
        }
    }
}

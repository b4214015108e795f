//! The Python face of the core: convert, detach from the interpreter, map errors. No decisions here.
//!
//! The surface is documented where Python programmers read it: `python/ovsvhost/_core.pyi`.
#![allow(clippy::needless_pass_by_value, reason = "PyO3 hands arguments over by value")]

mod bonds;
mod errors;
mod nic;
mod state;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use pyo3::prelude::*;

use crate::datapath::{self, BondConfig, NicConfig, NicDevice, PortChange, PortConfig, Sharing, SleepMax};
use crate::error::{Error, Result};
use crate::pmd::Steering;
use crate::pmd::assign::Policy;
use crate::pmd::balance::AutoLb;
use crate::port::Driver;
use crate::port::afxdp::XdpMode;
use crate::recovery::Recovery;
use crate::vhost::EndpointKind;
use crate::vhost::offer::Limit;
use bonds::{BondLink, BondState, Lacp, LacpInfo, LacpLink, LacpState, to_bond};
use errors::raise;
use nic::NicQueue;
use state::{Event, FdbEntry, PmdState, PortState, RxqState};

/// The switch itself.
#[pyclass(frozen, module = "ovsvhost._core")]
struct Datapath {
    inner: RwLock<Option<datapath::Datapath>>,
}

impl Datapath {
    /// Runs `f` without the interpreter, unless the datapath was closed.
    fn with<T: Send>(&self, py: Python<'_>, f: impl FnOnce(&datapath::Datapath) -> Result<T> + Send) -> PyResult<T> {
        let result = py.detach(|| {
            let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
            let open = inner.as_ref().ok_or_else(|| Error::Config("this datapath was closed".into()))?;
            f(open)
        });
        result.map_err(|e| raise(py, e))
    }
}

#[pymethods]
impl Datapath {
    #[new]
    #[pyo3(signature = (*, pmd_cpus = Vec::new(), max_sleep_us = None, rundir = None,
        restart_hold_ms = 1000))]
    fn new(
        py: Python<'_>,
        pmd_cpus: Vec<usize>,
        max_sleep_us: Option<u64>,
        rundir: Option<PathBuf>,
        restart_hold_ms: u32,
    ) -> PyResult<Self> {
        let hold = Duration::from_millis(restart_hold_ms.into());
        let open = || {
            let recovery =
                rundir.as_deref().map_or_else(Recovery::in_process, |rundir| Recovery::open_or_without(rundir, hold));
            datapath::Datapath::with_recovery(&pmd_cpus, max_sleep_us, recovery)
        };
        let inner = py.detach(open).map_err(|e| raise(py, e))?;
        Ok(Self { inner: RwLock::new(Some(inner)) })
    }

    fn offer_postcopy(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, datapath::Datapath::offer_postcopy)
    }

    fn limit_features(&self, py: Python<'_>, limit: FeatureLimit) -> PyResult<()> {
        self.with(py, |d| {
            d.limit_features(limit.to_limit()?);
            Ok(())
        })
    }

    fn offer_iommu(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, |d| {
            d.offer_iommu();
            Ok(())
        })
    }

    fn event_fd(&self, py: Python<'_>) -> PyResult<i32> {
        self.with(py, |d| Ok(d.event_fd()))
    }

    fn events(&self, py: Python<'_>) -> PyResult<Vec<Event>> {
        self.with(py, |d| Ok(d.events().into_iter().map(Event::from).collect()))
    }

    fn add_bridge(&self, py: Python<'_>, name: String) -> PyResult<()> {
        self.with(py, |d| d.add_bridge(&name))
    }

    #[pyo3(signature = (name, *, mac_aging_time_s = 300, mac_table_size = 8192, forward_bpdu = false))]
    fn set_bridge(
        &self,
        py: Python<'_>,
        name: String,
        mac_aging_time_s: i64,
        mac_table_size: i64,
        forward_bpdu: bool,
    ) -> PyResult<()> {
        self.with(py, |d| {
            let aging = u32::try_from(mac_aging_time_s).unwrap_or(0);
            let size = usize::try_from(mac_table_size).unwrap_or(0);
            d.set_bridge(&name, aging, size, forward_bpdu)
        })
    }

    fn del_bridge(&self, py: Python<'_>, name: String) -> PyResult<()> {
        self.with(py, |d| d.del_bridge(&name))
    }

    #[pyo3(signature = (bridge, name, *, r#type, ofport, socket, mtu = 1500, tx_retries_max = 8, backpressure_us = 0,
        tx_steering = "hash", socket_mode = 0o600, socket_owner = -1, socket_group = -1, allow_file_memory = false,
        dq_zero_copy = false))]
    #[allow(clippy::too_many_arguments, reason = "keywords of the Python call")]
    fn add_port(
        &self,
        py: Python<'_>,
        bridge: String,
        name: String,
        r#type: String,
        ofport: i64,
        socket: PathBuf,
        mtu: i64,
        tx_retries_max: i64,
        backpressure_us: i64,
        tx_steering: &str,
        socket_mode: u32,
        socket_owner: i64,
        socket_group: i64,
        allow_file_memory: bool,
        dq_zero_copy: bool,
    ) -> PyResult<()> {
        self.with(py, |d| {
            let kind = match r#type.as_str() {
                "dpdkvhostuserclient" => EndpointKind::Client,
                "dpdkvhostuser" => EndpointKind::Server,
                other => {
                    return Err(Error::Config(format!(
                        "{name}: unknown port type '{other}'; dpdkvhostuserclient and dpdkvhostuser are possible"
                    )));
                }
            };
            let config = PortConfig {
                kind,
                ofport: u16::try_from(ofport).unwrap_or(0),
                socket,
                mtu: to_u32(mtu),
                retries: to_u32(tx_retries_max),
                backpressure_us: to_u32(backpressure_us),
                steering: to_steering(&name, tx_steering)?,
                socket_mode,
                socket_owner: u32::try_from(socket_owner).ok(),
                socket_group: u32::try_from(socket_group).ok(),
                allow_file_memory,
                zero_copy: dq_zero_copy,
                name,
            };
            d.add_port(&bridge, config)
        })
    }

    #[pyo3(signature = (bridge, name, *, ofport, netdev, driver = "afxdp", mtu = None, tx_retries_max = 8, n_rxq = 1,
        n_rxq_desc = 2048, n_txq_desc = 2048, xdp_mode = "best-effort", use_need_wakeup = true, start_queue = 0,
        busy_budget = 0, zc_queues = 128, zc_min = 0, bond = None))]
    #[allow(clippy::too_many_arguments, reason = "keywords of the Python call")]
    fn add_nic(
        &self,
        py: Python<'_>,
        bridge: String,
        name: String,
        ofport: i64,
        netdev: String,
        driver: &str,
        mtu: Option<i64>,
        tx_retries_max: i64,
        n_rxq: i64,
        n_rxq_desc: i64,
        n_txq_desc: i64,
        xdp_mode: &str,
        use_need_wakeup: bool,
        start_queue: i64,
        busy_budget: i64,
        zc_queues: i64,
        zc_min: i64,
        bond: Option<String>,
    ) -> PyResult<()> {
        self.with(py, |d| {
            let device = NicDevice {
                netdev,
                driver: to_driver(&name, driver)?,
                n_rxq: to_u32(n_rxq),
                n_rxq_desc: to_u32(n_rxq_desc),
                n_txq_desc: to_u32(n_txq_desc),
                mode: to_xdp_mode(&name, xdp_mode)?,
                need_wakeup: use_need_wakeup,
                start_queue: to_u32(start_queue),
                busy_budget: to_u32(busy_budget),
                zc_queues: to_u32(zc_queues),
                zc_min: to_u32(zc_min),
            };
            let (ofport, retries) = (u16::try_from(ofport).unwrap_or(0), to_u32(tx_retries_max));
            d.add_nic(&bridge, NicConfig { name, ofport, device, mtu: mtu.map(to_u32), retries, bond })
        })
    }

    #[pyo3(signature = (name, *, netdev = None, n_rxq = None, n_rxq_desc = None, n_txq_desc = None, xdp_mode = None,
        use_need_wakeup = None, start_queue = None, busy_budget = None, zc_queues = None,
        zc_min = None))]
    #[allow(clippy::too_many_arguments, reason = "keywords of the Python call")]
    fn set_nic(
        &self,
        py: Python<'_>,
        name: String,
        netdev: Option<String>,
        n_rxq: Option<i64>,
        n_rxq_desc: Option<i64>,
        n_txq_desc: Option<i64>,
        xdp_mode: Option<&str>,
        use_need_wakeup: Option<bool>,
        start_queue: Option<i64>,
        busy_budget: Option<i64>,
        zc_queues: Option<i64>,
        zc_min: Option<i64>,
    ) -> PyResult<()> {
        self.with(py, |d| {
            let mode = xdp_mode.map(|text| to_xdp_mode(&name, text)).transpose()?;
            d.set_nic(&name, |device| {
                *device = NicDevice {
                    netdev: netdev.unwrap_or_else(|| device.netdev.clone()),
                    driver: device.driver,
                    n_rxq: n_rxq.map_or(device.n_rxq, to_u32),
                    n_rxq_desc: n_rxq_desc.map_or(device.n_rxq_desc, to_u32),
                    n_txq_desc: n_txq_desc.map_or(device.n_txq_desc, to_u32),
                    mode: mode.unwrap_or(device.mode),
                    need_wakeup: use_need_wakeup.unwrap_or(device.need_wakeup),
                    start_queue: start_queue.map_or(device.start_queue, to_u32),
                    busy_budget: busy_budget.map_or(device.busy_budget, to_u32),
                    zc_queues: zc_queues.map_or(device.zc_queues, to_u32),
                    zc_min: zc_min.map_or(device.zc_min, to_u32),
                };
            })
        })
    }

    fn refresh_nic(&self, py: Python<'_>, name: String) -> PyResult<()> {
        self.with(py, |d| d.refresh_nic(&name))
    }

    fn nic_queues(&self, py: Python<'_>, name: String) -> PyResult<Vec<NicQueue>> {
        Ok(self.with(py, |d| d.nic_queues(&name))?.into_iter().map(NicQueue::from).collect())
    }

    #[pyo3(signature = (name, *, mtu = None, admin_up = None, tx_retries_max = None, backpressure_us = None,
        tx_steering = None, dq_zero_copy = None))]
    #[allow(clippy::too_many_arguments, reason = "keywords of the Python call")]
    fn set_port(
        &self,
        py: Python<'_>,
        name: String,
        mtu: Option<i64>,
        admin_up: Option<bool>,
        tx_retries_max: Option<i64>,
        backpressure_us: Option<i64>,
        tx_steering: Option<&str>,
        dq_zero_copy: Option<bool>,
    ) -> PyResult<()> {
        self.with(py, |d| {
            let change = PortChange {
                mtu: mtu.map(to_u32),
                admin_up,
                retries: tx_retries_max.map(to_u32),
                backpressure_us: backpressure_us.map(to_u32),
                steering: tx_steering.map(|text| to_steering(&name, text)).transpose()?,
                zero_copy: dq_zero_copy,
            };
            d.set_port(&name, &change)
        })
    }

    fn del_port(&self, py: Python<'_>, name: String) -> PyResult<()> {
        self.with(py, |d| d.del_port(&name))
    }

    #[pyo3(signature = (bridge, name, *, mode = "active-backup", updelay_ms = 0, downdelay_ms = 0, primary = None,
        rebalance_ms = 10_000, lacp = None, last_active = None))]
    #[allow(clippy::too_many_arguments, reason = "keywords of the Python call")]
    fn add_bond(
        &self,
        py: Python<'_>,
        bridge: String,
        name: String,
        mode: &str,
        updelay_ms: u64,
        downdelay_ms: u64,
        primary: Option<String>,
        rebalance_ms: u64,
        lacp: Option<Lacp>,
        last_active: Option<String>,
    ) -> PyResult<()> {
        self.with(py, |d| {
            let config = to_bond(name, mode, [updelay_ms, downdelay_ms, rebalance_ms], primary, lacp)?;
            d.add_bond(&bridge, BondConfig { last_active, ..config })
        })
    }

    #[pyo3(signature = (name, *, mode = "active-backup", updelay_ms = 0, downdelay_ms = 0, primary = None,
        rebalance_ms = 10_000, lacp = None))]
    #[allow(clippy::too_many_arguments, reason = "keywords of the Python call")]
    fn set_bond(
        &self,
        py: Python<'_>,
        name: String,
        mode: &str,
        updelay_ms: u64,
        downdelay_ms: u64,
        primary: Option<String>,
        rebalance_ms: u64,
        lacp: Option<Lacp>,
    ) -> PyResult<()> {
        self.with(py, |d| d.set_bond(to_bond(name, mode, [updelay_ms, downdelay_ms, rebalance_ms], primary, lacp)?))
    }

    fn give_share(&self, py: Python<'_>, bond: String, share: usize, link: String) -> PyResult<()> {
        self.with(py, |d| d.give_share(&bond, share, &link))
    }

    fn del_bond(&self, py: Python<'_>, name: String) -> PyResult<()> {
        self.with(py, |d| d.del_bond(&name))
    }

    fn bonds(&self, py: Python<'_>) -> PyResult<Vec<BondState>> {
        self.with(py, |d| Ok(d.bonds().into_iter().map(BondState::from).collect()))
    }

    fn activate_link(&self, py: Python<'_>, bond: String, link: String) -> PyResult<bool> {
        self.with(py, |d| d.activate_link(&bond, &link))
    }

    fn hold_link(&self, py: Python<'_>, bond: String, link: String, enabled: bool) -> PyResult<()> {
        self.with(py, |d| d.hold_link(&bond, &link, enabled))
    }

    fn port(&self, py: Python<'_>, name: String) -> PyResult<PortState> {
        self.with(py, |d| d.port(&name).map(PortState::from))
    }

    fn ports(&self, py: Python<'_>) -> PyResult<Vec<PortState>> {
        self.with(py, |d| Ok(d.ports().into_iter().map(PortState::from).collect()))
    }

    fn fdb(&self, py: Python<'_>, bridge: String) -> PyResult<Vec<FdbEntry>> {
        self.with(py, |d| Ok(d.fdb(&bridge)?.into_iter().map(FdbEntry::from).collect()))
    }

    fn fdb_stats(&self, py: Python<'_>, bridge: String) -> PyResult<HashMap<&'static str, u64>> {
        self.with(py, |d| Ok(HashMap::from(d.fdb_stats(&bridge)?)))
    }

    fn flush_fdb(&self, py: Python<'_>, bridge: String) -> PyResult<()> {
        self.with(py, |d| d.flush_fdb(&bridge))
    }

    #[pyo3(signature = (seconds = 60))]
    fn pmds(&self, py: Python<'_>, seconds: u64) -> PyResult<Vec<PmdState>> {
        self.with(py, |d| Ok(d.pmds_over(seconds).into_iter().map(PmdState::from).collect()))
    }

    #[pyo3(signature = (cpu = None))]
    fn clear_pmd_stats(&self, py: Python<'_>, cpu: Option<usize>) -> PyResult<()> {
        self.with(py, |d| {
            d.clear_pmd_stats(cpu);
            Ok(())
        })
    }

    fn set_pmds(&self, py: Python<'_>, cpus: Vec<usize>) -> PyResult<()> {
        self.with(py, |d| d.set_pmds(&cpus))
    }

    #[pyo3(signature = (max_sleep_us = None, by_cpu = BTreeMap::new()))]
    fn set_sleep(&self, py: Python<'_>, max_sleep_us: Option<u64>, by_cpu: BTreeMap<usize, u64>) -> PyResult<()> {
        self.with(py, |d| {
            d.set_sleep(SleepMax { default: max_sleep_us, by_cpu });
            Ok(())
        })
    }

    #[pyo3(signature = (policy = "cycles", *, isolate = true, auto_lb = None))]
    fn set_sharing(
        &self,
        py: Python<'_>,
        policy: &str,
        isolate: bool,
        auto_lb: Option<(u64, u64, u64)>,
    ) -> PyResult<()> {
        self.with(py, |d| {
            let policy = Policy::named(policy).ok_or_else(|| {
                Error::Config(format!("pmd-rxq-assign={policy} is unknown: give cycles, group or roundrobin"))
            })?;
            let auto_lb =
                auto_lb.map(|(every_min, load_pct, improvement_pct)| AutoLb { every_min, load_pct, improvement_pct });
            d.set_sharing(Sharing { policy, isolate, auto_lb });
            Ok(())
        })
    }

    fn set_affinity(&self, py: Python<'_>, port: String, cpus: BTreeMap<u16, usize>) -> PyResult<()> {
        self.with(py, |d| d.set_affinity(&port, &cpus))
    }

    fn rebalance(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, |d| {
            d.rebalance();
            Ok(())
        })
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| drop(self.inner.write().unwrap_or_else(PoisonError::into_inner).take()));
    }
}

/// A name or a mask of virtio bits.
#[derive(FromPyObject)]
enum FeatureLimit {
    Mask(u64),
    Name(String),
}

impl FeatureLimit {
    fn to_limit(&self) -> Result<Limit> {
        match self {
            Self::Mask(bits) => Ok(Limit::Mask(*bits)),
            Self::Name(name) if name == "all" => Ok(Limit::All),
            Self::Name(name) if name == "ovs-3.1" => Ok(Limit::Ovs31 { tso: false }),
            Self::Name(name) if name == "ovs-3.1-tso" => Ok(Limit::Ovs31 { tso: true }),
            Self::Name(name) => Err(Error::Config(format!("unknown limit of features '{name}'"))),
        }
    }
}

/// A number out of the type's range is out of every option's: the core says so where it checks.
fn to_u32(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn to_steering(port: &str, text: &str) -> Result<Steering> {
    match text {
        "hash" => Ok(Steering::Hash),
        "thread" => Ok(Steering::Thread),
        other => Err(Error::Config(format!("{port}: unknown tx-steering '{other}'; hash and thread are possible"))),
    }
}

fn to_driver(port: &str, text: &str) -> Result<Driver> {
    match text {
        "afxdp" => Ok(Driver::Afxdp),
        "packet" => Ok(Driver::Packet),
        other => Err(Error::Config(format!("{port}: unknown driver '{other}'; afxdp and packet are possible"))),
    }
}

fn to_xdp_mode(port: &str, text: &str) -> Result<XdpMode> {
    XdpMode::named(text).ok_or_else(|| {
        Error::Config(format!(
            "{port}: unknown xdp-mode '{text}'; best-effort, native-with-zerocopy, native and generic are possible"
        ))
    })
}

/// The extension module.
#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<Datapath>()?;
    module.add_class::<Event>()?;
    module.add_class::<PortState>()?;
    module.add_class::<BondState>()?;
    module.add_class::<BondLink>()?;
    module.add_class::<LacpState>()?;
    module.add_class::<LacpLink>()?;
    module.add_class::<LacpInfo>()?;
    module.add_class::<FdbEntry>()?;
    module.add_class::<NicQueue>()?;
    module.add_class::<PmdState>()?;
    module.add_class::<RxqState>()?;
    Ok(())
}

//! Which NUMA node a page or a core is on.
#![allow(unsafe_code, reason = "get_mempolicy(2) is not in std")]

/// The node of a core; 0 where the kernel knows no nodes (`/sys/devices/system/cpu/cpuN/nodeM`).
pub fn node_of_cpu(cpu: usize) -> u32 {
    let Ok(entries) = std::fs::read_dir(format!("/sys/devices/system/cpu/cpu{cpu}")) else { return 0 };
    let mut names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.find_map(|name| name.strip_prefix("node")?.parse().ok()).unwrap_or(0)
}

/// The node of the page at `address`; None if the kernel has no NUMA support or nothing is mapped there.
pub fn node_of(address: usize) -> Option<u32> {
    const MPOL_F_NODE: libc::c_ulong = 1;
    const MPOL_F_ADDR: libc::c_ulong = 2;
    let mut node: libc::c_int = 0;
    let no_mask = std::ptr::null_mut::<libc::c_ulong>();
    let zero: libc::c_ulong = 0;
    // SAFETY: with these flags the kernel writes one int, `node`, and only asks where `address` is; a bad one is EFAULT.
    let rc = unsafe {
        libc::syscall(libc::SYS_get_mempolicy, &raw mut node, no_mask, zero, address, MPOL_F_NODE | MPOL_F_ADDR)
    };
    if rc == 0 { u32::try_from(node).ok() } else { None }
}

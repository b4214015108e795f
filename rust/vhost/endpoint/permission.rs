//! Says who is kept out by what when the kernel says EACCES: the part of the path, its owner and mode, and who we are.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Names the part of `path` that this process may not use. `right` is what it needs on `path` itself: `write socket`.
pub(super) fn denied(path: &Path, right: &str) -> String {
    // From the top: the first part that cannot be looked at lies in a directory that cannot be searched.
    let parts: Vec<&Path> = path.ancestors().collect();
    let is_hidden = |part: &&&Path| fs::symlink_metadata(part).is_err_and(|e| e.kind() == ErrorKind::PermissionDenied);
    let hidden = parts.iter().rev().find(is_hidden).and_then(|part| part.parent());
    let (culprit, right) = hidden.map_or((path, right), |directory| (directory, "search directory"));
    let owned = fs::symlink_metadata(culprit).map_or_else(
        |_| String::new(),
        |meta| format!(" (owner {}, group {}, mode {:04o})", meta.uid(), meta.gid(), meta.mode() & 0o7777),
    );
    let us = fs::metadata("/proc/self").map_or_else(
        |_| String::new(),
        |meta| format!("; this process runs as uid {}, gid {}", meta.uid(), meta.gid()),
    );
    format!("no permission to {right} '{}'{owned}{us}; grant it, e.g. by group and mode", culprit.display())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn owner_mode_and_who_we_are_are_named() {
        let dir = vmm_sys_util::tempdir::TempDir::new().unwrap();
        let path = dir.as_path().join("s");
        fs::File::create(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let us = fs::metadata("/proc/self").unwrap();
        let (uid, gid) = (us.uid(), us.gid());
        let want = format!(
            "no permission to write socket '{}' (owner {uid}, group {gid}, mode 0640); this process runs as uid {uid}, \
             gid {gid}; grant it, e.g. by group and mode",
            path.display()
        );
        assert_eq!(denied(&path, "write socket"), want);
    }
}

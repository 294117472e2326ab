//! What the machine has left.

use std::fs;
use std::path::Path;

/// Bytes of memory this process can take without others being pushed out, under the limit of every control group it is
/// in; `None` where the system does not tell.
pub fn available_bytes() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let free = in_kib(&meminfo, "MemAvailable:")?;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Some(group_limit(&groups, Path::new("/sys/fs/cgroup")).map_or(free, |limit| limit.min(free)))
}

/// The value of one line of `/proc/meminfo` or `/proc/self/status`, in bytes.
pub fn in_kib(meminfo: &str, key: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The least memory limit of the groups that `/proc/self/cgroup` names and of those they are in, below `root`.
///
/// A line is `number:controllers:path`. The second version has one hierarchy, number 0 and no controllers; in the first
/// the memory controller has its own.
fn group_limit(groups: &str, root: &Path) -> Option<u64> {
    let limits = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let (folder, file) = match controllers {
            "" => (root.to_path_buf(), "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => return None,
        };
        let inner = Path::new(path.trim_start_matches('/'));
        let limit =
            |group: &Path| fs::read_to_string(folder.join(group).join(file)).ok()?.trim().parse::<u64>().ok();
        inner.ancestors().filter_map(limit).min()
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_the_line_that_says_it() {
        let meminfo = "MemTotal:       24593740 kB\nMemFree: 1 kB\nMemAvailable:   20000000 kB\n";
        assert_eq!(in_kib(meminfo, "MemAvailable:"), Some(20_480_000_000));
        assert_eq!(in_kib(meminfo, "SwapFree:"), None);
    }

    #[test]
    #[expect(clippy::unwrap_used)]
    fn the_least_limit_of_all_groups_around_counts() {
        let root = tempfile::tempdir().unwrap();
        let put = |file: &str, text: &str| {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("user/app/memory.max", "max\n");
        put("user/memory.max", "5000\n");
        put("memory/batch/memory.limit_in_bytes", "7000\n");
        put("memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(group_limit("0::/user/app\n", root.path()), Some(5000));
        assert_eq!(group_limit("5:cpu,memory:/batch\n4:devices:/\n", root.path()), Some(7000));
        assert_eq!(group_limit("4:devices:/\n", root.path()), None);
        assert_eq!(group_limit("", root.path()), None);
    }
}

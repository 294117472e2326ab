//! What a run ran on, where the system tells.

use std::fs;

use crate::plan::in_kib;

/// The processor's name; of several kinds of core the first one's.
pub(super) fn cpu() -> Option<String> {
    processor(&fs::read_to_string("/proc/cpuinfo").ok()?)
}

/// Memory of the machine, whatever of it is free.
pub(super) fn memory_bytes() -> Option<u64> {
    total(&fs::read_to_string("/proc/meminfo").ok()?)
}

/// The largest resident set of this process so far.
pub(super) fn peak_rss_bytes() -> Option<u64> {
    in_kib(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// The name the system gives itself, and the kernel's version.
pub(super) fn os() -> String {
    let release = fs::read_to_string("/etc/os-release").ok();
    let name = release.as_deref().and_then(pretty_name).unwrap_or_else(|| std::env::consts::OS.to_owned());
    match fs::read_to_string("/proc/sys/kernel/osrelease") {
        Ok(kernel) => format!("{name}, kernel {}", kernel.trim()),
        Err(_) => name,
    }
}

/// x86 says `model name`; some ARM kernels say `Model` of the board, and others nothing.
fn processor(cpuinfo: &str) -> Option<String> {
    let value = |key: &str| {
        let mut fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        fields.find_map(|(name, value)| (name.trim() == key).then(|| value.trim().to_owned()))
    };
    value("model name").or_else(|| value("Model")).filter(|name| !name.is_empty())
}

fn total(meminfo: &str) -> Option<u64> {
    in_kib(meminfo, "MemTotal:")
}

fn pretty_name(release: &str) -> Option<String> {
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(name.trim().trim_matches('"').to_owned()).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_is_found() {
        let x86 = "processor\t: 0\nmodel name\t: AMD EPYC 9R45\ncache size\t: 1024 KB\n";
        let arm = "processor\t: 0\nBogoMIPS\t: 108.00\n\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n";
        assert_eq!(processor(x86).as_deref(), Some("AMD EPYC 9R45"));
        assert_eq!(processor(arm).as_deref(), Some("Raspberry Pi 5 Model B Rev 1.0"));
        assert_eq!(processor("processor\t: 0\n"), None);
        assert_eq!(total("MemTotal:       24593740 kB\nMemFree: 1 kB\n"), Some(25_183_989_760));
        assert_eq!(total("MemFree: 1 kB\n"), None);
        let release = "NAME=\"Debian\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n";
        assert_eq!(pretty_name(release).as_deref(), Some("Debian GNU/Linux 12 (bookworm)"));
    }
}

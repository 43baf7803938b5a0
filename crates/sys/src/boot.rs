//! Which boot of the machine this is, and how old it is.

use rustix::time::{ClockId, clock_gettime};
use std::io;
use std::time::Duration;

const BOOT_ID_PATH: &str = "/proc/sys/kernel/random/boot_id";
const UUID_CHARS: usize = 36;

/// The kernel's boot id: a UUID in its 36 characters, another one after every boot.
///
/// A record that holds another boot id speaks of processes that can no longer be alive.
///
/// # Errors
/// What reading `/proc/sys/kernel/random/boot_id` gives, or `InvalidData` if that is no UUID.
pub fn boot_id() -> io::Result<String> {
    let text = std::fs::read_to_string(BOOT_ID_PATH)?;
    let id = text.trim_end();
    let is_uuid =
        id.len() == UUID_CHARS && id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    if !is_uuid {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the boot id is not a UUID"));
    }
    Ok(id.to_owned())
}

/// Time since boot, sleep included (`CLOCK_BOOTTIME`): the clock of the start times in `/proc`.
pub fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanoseconds = u32::try_from(now.tv_nsec).unwrap_or(0);
    Duration::new(seconds, nanoseconds)
}

/// [`since_boot`] in the unit of field 22 of `/proc/PID/stat`, rounded down as the kernel does.
pub(crate) fn ticks_since_boot() -> u64 {
    const NANOSECONDS_PER_SECOND: u128 = 1_000_000_000;
    let nanoseconds_per_tick = NANOSECONDS_PER_SECOND / u128::from(ticks_per_second());
    u64::try_from(since_boot().as_nanos() / nanoseconds_per_tick).unwrap_or(u64::MAX)
}

fn ticks_per_second() -> u64 {
    // SAFETY: sysconf takes a number and touches no memory of ours.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    // USER_HZ has been 100 on every architecture of the last decades.
    u64::try_from(ticks).ok().filter(|ticks| *ticks > 0).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_id_stays_the_same() {
        assert_eq!(boot_id().unwrap(), boot_id().unwrap());
    }

    #[test]
    fn the_age_of_the_boot_agrees_with_proc_uptime() {
        let before = since_boot();
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let after = since_boot();
        let seconds: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        // /proc/uptime is cut to hundredths.
        assert!(seconds >= before.as_secs_f64() - 0.011, "{seconds} {before:?}");
        assert!(seconds <= after.as_secs_f64() + 0.001, "{seconds} {after:?}");
    }
}

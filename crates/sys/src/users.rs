//! The user database, the groups of a user, and the name of this machine.

use rustix::io::Errno;
use std::ffi::{CStr, CString, OsStr, OsString, c_char, c_int};
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// Enough for any entry of a plain passwd file.
const BUFFER_BYTES_MIN: usize = 1024;
/// An entry that needs more than this is taken for a fault of its directory service.
const BUFFER_BYTES_MAX: usize = 1 << 20;
/// The kernel's bound of a process's supplementary groups (`NGROUPS_MAX`).
const GROUPS_MAX: usize = 65_536;

/// An entry of the user database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The login name.
    pub name: OsString,
    /// The user id. Several names may share one.
    pub uid: u32,
    /// The primary group.
    pub gid: u32,
    /// The home directory, as written; it need not exist.
    pub home: PathBuf,
    /// The login shell, as written; empty means `/bin/sh` (passwd(5)).
    pub shell: PathBuf,
    /// The comment field: by custom the full name, then a comma.
    pub gecos: OsString,
}

/// The user with this id, or `None` if there is none.
///
/// May block on the network where the database is a directory service.
///
/// # Errors
/// What getpwuid_r(3) gives: the database cannot be read, which is not the same as "no such user".
pub fn user_by_uid(uid: u32) -> io::Result<Option<User>> {
    lookup(|entry, buffer, bytes, found| {
        // SAFETY: all pointers are to writable memory of the right types, and `bytes` is the length
        // of the buffer; all of it outlives the call.
        unsafe { libc::getpwuid_r(uid, entry, buffer, bytes, found) }
    })
}

/// The user with this name, or `None` if there is none. A name with a NUL is nobody's.
///
/// May block on the network where the database is a directory service.
///
/// # Errors
/// As [`user_by_uid`].
pub fn user_by_name(name: &OsStr) -> io::Result<Option<User>> {
    let Ok(name) = CString::new(name.as_bytes()) else { return Ok(None) };
    lookup(|entry, buffer, bytes, found| {
        // SAFETY: the name is a C string, all other pointers are to writable memory of the right
        // types, and `bytes` is the length of the buffer; all of it outlives the call.
        unsafe { libc::getpwnam_r(name.as_ptr(), entry, buffer, bytes, found) }
    })
}

/// The user that this process acts as.
///
/// # Errors
/// As [`user_by_uid`].
pub fn current_user() -> io::Result<Option<User>> {
    user_by_uid(effective_uid())
}

/// The user id that this process acts as.
pub fn effective_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// All groups of a user by the group database, the primary one included.
///
/// May block on the network where the database is a directory service.
///
/// # Errors
/// `InvalidInput` for a name with a NUL; `ERANGE` for more groups than a process can have.
pub fn groups_of(user: &User) -> io::Result<Vec<u32>> {
    let name = CString::new(user.name.as_bytes())?;
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let mut count = c_int::try_from(groups.len()).unwrap_or(c_int::MAX);
        // SAFETY: the name is a C string, `groups` has room for `count` entries, and both outlive
        // the call.
        let code = unsafe {
            libc::getgrouplist(name.as_ptr(), user.gid, groups.as_mut_ptr(), &raw mut count)
        };
        let wanted = usize::try_from(count).unwrap_or(0);
        if code >= 0 {
            groups.truncate(wanted);
            return Ok(groups);
        }
        if groups.len() >= GROUPS_MAX {
            return Err(Errno::RANGE.into());
        }
        // glibc tells how many there are, musl does not always: so at least double.
        groups.resize(wanted.max(groups.len() * 2).min(GROUPS_MAX), 0);
    }
}

/// The name of a group, or `None` if there is none.
///
/// May block on the network where the database is a directory service.
///
/// # Errors
/// What getgrgid_r(3) gives.
pub fn group_name(gid: u32) -> io::Result<Option<OsString>> {
    let mut buffer: Vec<c_char> = vec![0; BUFFER_BYTES_MIN];
    loop {
        let mut entry = MaybeUninit::<libc::group>::uninit();
        let mut found = std::ptr::null_mut();
        // SAFETY: all pointers are to writable memory of the right types, and the length is that of
        // the buffer; all of it outlives the call.
        let code = unsafe {
            libc::getgrgid_r(
                gid,
                entry.as_mut_ptr(),
                buffer.as_mut_ptr(),
                buffer.len(),
                &raw mut found,
            )
        };
        match code {
            0 if found.is_null() => return Ok(None),
            0 => {
                // SAFETY: on success with a result the call has filled in the entry.
                let entry = unsafe { entry.assume_init() };
                return Ok(Some(OsString::from_vec(field(entry.gr_name))));
            }
            libc::ERANGE if buffer.len() < BUFFER_BYTES_MAX => buffer.resize(buffer.len() * 2, 0),
            libc::EINTR => {}
            libc::ENOENT | libc::ESRCH => return Ok(None),
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// The groups of this process, the primary one not necessarily among them.
///
/// # Errors
/// Those of getgroups(2).
pub fn current_groups() -> io::Result<Vec<u32>> {
    Ok(rustix::process::getgroups()?.into_iter().map(rustix::process::Gid::as_raw).collect())
}

/// The name of this machine as the kernel has it; often, but not always, without a domain.
pub fn hostname() -> OsString {
    OsString::from_vec(rustix::system::uname().nodename().to_bytes().to_vec())
}

/// Calls one of the two lookups with a buffer that grows until the entry fits.
fn lookup(
    call: impl Fn(*mut libc::passwd, *mut c_char, usize, *mut *mut libc::passwd) -> c_int,
) -> io::Result<Option<User>> {
    let mut buffer: Vec<c_char> = vec![0; BUFFER_BYTES_MIN];
    loop {
        let mut entry = MaybeUninit::<libc::passwd>::uninit();
        let mut found = std::ptr::null_mut();
        let code = call(entry.as_mut_ptr(), buffer.as_mut_ptr(), buffer.len(), &raw mut found);
        match code {
            0 if found.is_null() => return Ok(None),
            0 => {
                // SAFETY: on success with a result the call has filled in the entry.
                let entry = unsafe { entry.assume_init() };
                return Ok(Some(user_of(&entry)));
            }
            libc::ERANGE if buffer.len() < BUFFER_BYTES_MAX => buffer.resize(buffer.len() * 2, 0),
            libc::EINTR => {}
            // Some name services report "not found" as one of these instead of a null result.
            libc::ENOENT | libc::ESRCH => return Ok(None),
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// The strings of the entry point into the lookup's buffer, which is still alive here.
fn user_of(entry: &libc::passwd) -> User {
    User {
        name: OsString::from_vec(field(entry.pw_name)),
        uid: entry.pw_uid,
        gid: entry.pw_gid,
        home: OsString::from_vec(field(entry.pw_dir)).into(),
        shell: OsString::from_vec(field(entry.pw_shell)).into(),
        gecos: OsString::from_vec(field(entry.pw_gecos)),
    }
}

fn field(text: *const c_char) -> Vec<u8> {
    if text.is_null() {
        return Vec::new();
    }
    // SAFETY: a field of a filled-in entry is null or a C string in the lookup's buffer, which the
    // caller keeps alive; it is copied before this function returns.
    unsafe { CStr::from_ptr(text) }.to_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_found_by_both_keys() {
        let root = user_by_uid(0).unwrap().unwrap();
        assert_eq!((root.uid, root.gid), (0, 0));
        assert!(root.home.is_absolute());
        assert_eq!(user_by_name(&root.name).unwrap(), Some(root));
    }

    #[test]
    fn an_entry_agrees_with_the_passwd_file() {
        let file = std::fs::read_to_string("/etc/passwd").unwrap();
        for line in file.lines() {
            let fields: Vec<_> = line.split(':').collect();
            let user = user_by_name(OsStr::new(fields[0])).unwrap().unwrap();
            assert_eq!(user.uid.to_string(), fields[2]);
            assert_eq!(user.gid.to_string(), fields[3]);
            assert_eq!(user.gecos, fields[4]);
            assert_eq!(user.home, PathBuf::from(fields[5]));
            assert_eq!(user.shell, PathBuf::from(fields[6]));
        }
    }

    #[test]
    fn nobody_has_an_impossible_name_or_id() {
        for name in ["no such user", "", "a\0b", "root:x"] {
            assert_eq!(user_by_name(OsStr::new(name)).unwrap(), None, "{name:?}");
        }
        assert_eq!(user_by_uid(u32::MAX - 7).unwrap(), None);
    }

    #[test]
    fn the_buffer_grows_until_the_entry_fits_and_no_further() {
        let sizes = std::cell::RefCell::new(Vec::new());
        let result = lookup(|_, _, bytes, _| {
            sizes.borrow_mut().push(bytes);
            libc::ERANGE
        });
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ERANGE));
        assert_eq!(sizes.borrow().first(), Some(&BUFFER_BYTES_MIN));
        assert_eq!(sizes.borrow().last(), Some(&BUFFER_BYTES_MAX));
    }

    #[test]
    fn the_groups_of_a_user_hold_the_primary_one() {
        let root = user_by_uid(0).unwrap().unwrap();
        assert!(groups_of(&root).unwrap().contains(&root.gid));
        assert!(current_groups().unwrap().len() <= GROUPS_MAX);
    }

    #[test]
    fn a_group_has_the_name_of_the_group_file() {
        let file = std::fs::read_to_string("/etc/group").unwrap();
        let first = file.lines().next().unwrap();
        let fields: Vec<_> = first.split(':').collect();
        let gid = fields[2].parse().unwrap();
        assert_eq!(group_name(gid).unwrap().unwrap(), fields[0]);
        assert_eq!(group_name(u32::MAX - 7).unwrap(), None);
    }

    #[test]
    fn the_hostname_is_that_of_proc() {
        let proc = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        assert_eq!(hostname(), proc.trim_end());
    }
}

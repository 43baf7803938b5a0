//! Acting as another user: one thread for its file accesses, or this whole process for good.
//!
//! Both are for a process of root. The ids that the kernel keeps are those of threads, and the calls
//! used here are the kernel's own, which change the calling thread only: libc's would change every
//! thread of a listener.

use crate::users::{User, groups_of};
use rustix::io::Errno;
use rustix::process::{Gid, Uid, getegid, geteuid, getgid, getgroups, getuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};
use std::collections::BTreeSet;
use std::io;
use thiserror::Error;

/// The ids that a process of a user has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user.
    pub uid: u32,
    /// The primary group.
    pub gid: u32,
    /// All groups, the primary one included.
    pub groups: Vec<u32>,
}

impl Identity {
    /// That of a user of the database, with the groups of the group database (initgroups(3)).
    ///
    /// May block on the network where the database is a directory service.
    ///
    /// # Errors
    /// Those of [`groups_of`].
    pub fn of(user: &User) -> io::Result<Self> {
        Ok(Self { uid: user.uid, gid: user.gid, groups: groups_of(user)? })
    }

    fn set_groups(&self) -> Result<(), Errno> {
        let groups: Vec<Gid> = self.groups.iter().map(|group| Gid::from_raw(*group)).collect();
        set_thread_groups(&groups)
    }
}

/// Why the process has not become the user. It may have some of the user's ids and some of root's:
/// there is nothing left for it to do but to end.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BecomeError {
    /// A step failed.
    #[error("{step}: {error}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        error: Errno,
    },
    /// The calls succeeded, and yet something of root's is still there.
    #[error("{0}")]
    NotWhole(&'static str),
    /// Root can't become root.
    #[error("uid 0 is no other user")]
    Root,
}

/// Runs `access` as the user as far as files are concerned (fsuid, fsgid, groups), and no further: the
/// thread can't be signalled by the user meanwhile, and no other thread is touched. It runs on a
/// thread of its own, which ends with it, so there is nothing to be undone.
///
/// For what root reads on behalf of a user: root must not be led by a link to what the user may not
/// read, and on a file server root may be nobody. Capabilities over files go with the uid
/// (capabilities(7), "Effect of user ID changes on capabilities").
///
/// # Errors
/// No thread could be had, or this process may not act as that user; nothing was run then.
pub fn with_file_access_of<T: Send>(
    identity: &Identity,
    access: impl FnOnce() -> T + Send,
) -> io::Result<T> {
    let as_user = || {
        identity.set_groups()?;
        // SAFETY: sets ids of this thread, and takes no pointer. It reports no errors.
        unsafe { libc::setfsgid(identity.gid) };
        // SAFETY: as above.
        unsafe { libc::setfsuid(identity.uid) };
        // No group and no user has the number -1, so these change nothing and say what is now.
        // SAFETY: as above.
        let gid = unsafe { libc::setfsgid(u32::MAX) }.cast_unsigned();
        // SAFETY: as above.
        let uid = unsafe { libc::setfsuid(u32::MAX) }.cast_unsigned();
        if (uid, gid) != (identity.uid, identity.gid) {
            return Err(Errno::PERM.into());
        }
        Ok(access())
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, as_user)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Makes this process one of the user's, with no way back: groups, gid, uid, no capabilities, and a
/// session keyring of its own. It is then checked that root can't be regained.
///
/// What the user may do by programs that are set-user-ID root stays possible, as after any login:
/// `no_new_privs` is not set, or sudo(8) would not work.
///
/// # Errors
/// [`BecomeError`]; the process must then end.
pub fn become_user(identity: &Identity) -> Result<(), BecomeError> {
    if identity.uid == 0 {
        return Err(BecomeError::Root);
    }
    only_one_thread()?;
    become_on_this_thread(identity)
}

fn become_on_this_thread(identity: &Identity) -> Result<(), BecomeError> {
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    step("set the groups", identity.set_groups())?;
    step("set the group", set_thread_res_gid(gid, gid, gid))?;
    step("set the user", set_thread_res_uid(uid, uid, uid))?;
    // Some containers keep capabilities over a change of uid (capabilities(7), securebits).
    let none = CapabilitySet::empty();
    let nothing = CapabilitySets { effective: none, permitted: none, inheritable: none };
    step("give up the capabilities", set_capabilities(None, nothing))?;
    step("leave the session keyring", leave_session_keyring())?;
    check_become(identity)
}

/// Whether everything is as asked for, and root out of reach.
fn check_become(identity: &Identity) -> Result<(), BecomeError> {
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    if (getuid(), geteuid()) != (uid, uid) || (getgid(), getegid()) != (gid, gid) {
        return Err(BecomeError::NotWhole("the ids are not the user's"));
    }
    let groups = step("read the groups", getgroups())?;
    let have: BTreeSet<u32> = groups.into_iter().map(Gid::as_raw).collect();
    if have != identity.groups.iter().copied().collect() {
        return Err(BecomeError::NotWhole("the groups are not the user's"));
    }
    let kept = step("read the capabilities", capabilities(None))?;
    if !kept.effective.is_empty() || !kept.permitted.is_empty() || !kept.inheritable.is_empty() {
        return Err(BecomeError::NotWhole("capabilities are left"));
    }
    let root = Uid::from_raw(0);
    if set_thread_res_uid(None, root, None).is_ok() || set_thread_res_uid(root, None, None).is_ok()
    {
        return Err(BecomeError::NotWhole("root can be regained"));
    }
    let wheel = Gid::from_raw(0);
    if identity.gid != 0 && set_thread_res_gid(None, wheel, None).is_ok() {
        return Err(BecomeError::NotWhole("the group of root can be regained"));
    }
    Ok(())
}

fn step<T>(step: &'static str, result: Result<T, Errno>) -> Result<T, BecomeError> {
    result.map_err(|error| BecomeError::Step { step, error })
}

/// The ids of other threads would stay root's.
fn only_one_thread() -> Result<(), BecomeError> {
    let tasks = std::fs::read_dir("/proc/self/task").map_err(|error| BecomeError::Step {
        step: "count the threads",
        error: Errno::from_io_error(&error).unwrap_or(Errno::IO),
    })?;
    if tasks.count() == 1 {
        Ok(())
    } else {
        Err(BecomeError::NotWhole("another thread would stay root's"))
    }
}

/// Whoever has a process in a session keyring may use its keys: root's is not for the user.
fn leave_session_keyring() -> Result<(), Errno> {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    let anonymous = std::ptr::null::<libc::c_char>();
    // SAFETY: with a null name the call makes a keyring and reads no memory of ours.
    let code = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, anonymous) };
    match code {
        -1 => match crate::errno::last() {
            // A kernel without keys, or a container that keeps its processes from them: then there
            // is none to be left.
            Errno::NOSYS | Errno::PERM | Errno::ACCESS => Ok(()),
            error => Err(error),
        },
        _ => Ok(()),
    }
}

/// Makes the kernel choose this process as readily as any other when memory runs out: a service
/// that is spared, as sshd usually is, must not spare all that its users run.
///
/// # Errors
/// Those of writing `/proc/self/oom_score_adj`.
pub fn reset_oom_score() -> io::Result<()> {
    const PATH: &str = "/proc/self/oom_score_adj";
    let score = std::fs::read_to_string(PATH)?;
    if score.trim().parse::<i32>().is_ok_and(|score| score < 0) {
        std::fs::write(PATH, "0")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    /// An id that no user of any machine has.
    const NOBODYS: u32 = 3_000_000_017;

    fn nobody() -> Identity {
        Identity { uid: NOBODYS, gid: NOBODYS, groups: vec![NOBODYS, NOBODYS + 1] }
    }

    fn is_root(test: &str) -> bool {
        let is_root = crate::users::effective_uid() == 0;
        if !is_root {
            eprintln!("SKIPPED, only root can become another user: {test}");
        }
        is_root
    }

    #[test]
    fn a_root_that_reads_as_a_user_reads_what_the_user_may_and_no_more() {
        let root = tempfile::TempDir::new().unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let make = |name: &str, mode: u32, gid: u32| {
            let path = root.path().join(name);
            fs::write(&path, name).unwrap();
            std::os::unix::fs::chown(&path, None, Some(gid)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        if !is_root("reading as a user") {
            // An ordinary user can only act as itself.
            let refused = with_file_access_of(&nobody(), || ());
            assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
            return;
        }
        let roots = make("roots", 0o600, 0);
        let groups = make("groups", 0o640, NOBODYS + 1);
        let others = make("others", 0o640, NOBODYS + 2);
        let everyones = make("everyones", 0o644, 0);
        let read = with_file_access_of(&nobody(), || {
            [&roots, &groups, &others, &everyones].map(|path| fs::read(path).is_ok())
        });
        assert_eq!(read.unwrap(), [false, true, false, true]);
        // This thread, and every other one, is root as before.
        assert!(fs::read(&roots).is_ok());
    }

    /// The ids are those of threads, so a thread can stand for the whole process.
    fn on_a_thread<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
        std::thread::spawn(test).join().unwrap()
    }

    #[test]
    fn what_has_become_a_user_is_nothing_else() {
        if !is_root("becoming a user") {
            return;
        }
        let status = on_a_thread(|| {
            become_on_this_thread(&nobody()).unwrap();
            assert!(fs::read("/etc/shadow").is_err());
            assert!(fs::write("/proc/self/oom_score_adj", "-1").is_err());
            fs::read_to_string("/proc/thread-self/status").unwrap()
        });
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        let all = vec![NOBODYS.to_string(); 4];
        assert_eq!((field("Uid:"), field("Gid:")), (all.clone(), all));
        assert_eq!(field("Groups:"), [NOBODYS.to_string(), (NOBODYS + 1).to_string()]);
        for sets in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(field(sets), ["0000000000000000"], "{sets}");
        }
    }

    #[test]
    fn fault_54_whoever_may_not_change_the_user_or_the_groups_says_so() {
        assert_eq!(become_user(&Identity { uid: 0, ..nobody() }), Err(BecomeError::Root));
        if !is_root("dropping without the right to") {
            return;
        }
        let without = |gone: CapabilitySet| {
            on_a_thread(move || {
                let have = capabilities(None).unwrap();
                let effective = have.effective - gone;
                set_capabilities(None, CapabilitySets { effective, ..have }).unwrap();
                let reading = with_file_access_of(&nobody(), || ());
                assert_eq!(reading.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
                become_on_this_thread(&nobody())
            })
        };
        let error = Errno::PERM;
        let refused = without(CapabilitySet::SETUID);
        assert_eq!(refused, Err(BecomeError::Step { step: "set the user", error }));
        let refused = without(CapabilitySet::SETGID);
        assert_eq!(refused, Err(BecomeError::Step { step: "set the groups", error }));
    }

    #[test]
    fn fault_54_what_is_still_roots_is_found() {
        let own = Identity {
            uid: crate::users::effective_uid(),
            gid: getegid().as_raw(),
            groups: crate::users::current_groups().unwrap(),
        };
        if is_root("looking for what is left of root") {
            // Nothing was changed, so all of root is left.
            assert!(matches!(check_become(&own), Err(BecomeError::NotWhole(_))));
        }
        let others = Identity { uid: NOBODYS, ..own };
        assert!(matches!(check_become(&others), Err(BecomeError::NotWhole(_))));
        let spawned = std::thread::spawn(only_one_thread).join().unwrap();
        assert!(matches!(spawned, Err(BecomeError::NotWhole(_))));
    }
}

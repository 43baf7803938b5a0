//! Finds the program that an argv names, and tells afterwards why one could not be started.
//!
//! posix_spawn answers `ENOENT` alike for a missing working directory, a missing program and a
//! missing interpreter. So the search is ours, by the *child's* PATH, and a failure is diagnosed
//! by looking at the files again.

mod interpreter;

use interpreter::broken_interpreter;
use rustix::fs::{Access, AtFlags, CWD, FileType, accessat, stat};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Where programs are searched when the environment has no PATH (glibc's `_CS_PATH`).
pub const DEFAULT_PATH: &[u8] = b"/bin:/usr/bin";

/// Why a program cannot be started, distinct from anything that a running program can do.
///
/// Sorted by whose it is: the request's, the environment's, the machine's at this moment.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SpawnFailure {
    /// No such file, there or anywhere in PATH.
    #[error("{program:?} was not found")]
    NotFound {
        /// The name as it was given, or the file that was to be executed.
        program: PathBuf,
    },
    /// There is such a file, but execution is not permitted.
    #[error("{program:?} is not executable")]
    NotExecutable {
        /// The file.
        program: PathBuf,
    },
    /// A directory cannot be executed.
    #[error("{program:?} is a directory")]
    IsDirectory {
        /// The directory.
        program: PathBuf,
    },
    /// The file is there, what it is to be run by is not: the `#!` line of a script, the loader of
    /// a binary. A `\r` at the end of its name comes from a script with Windows line ends.
    #[error("{program:?} needs {interpreter:?}, which is missing or not executable")]
    BadInterpreter {
        /// The file.
        program: PathBuf,
        /// What its first line or its header names.
        interpreter: PathBuf,
    },
    /// Neither a binary for this machine nor a script with a `#!` line. A shell would guess that it
    /// is a shell script; argv is exact here, so nothing is guessed.
    #[error("{program:?} is neither a binary for this machine nor a script with a #! line")]
    BadFormat {
        /// The file.
        program: PathBuf,
    },
    /// The working directory does not exist.
    #[error("the working directory {cwd:?} does not exist")]
    MissingCwd {
        /// The directory that was asked for.
        cwd: PathBuf,
    },
    /// The working directory is something else.
    #[error("the working directory {cwd:?} is not a directory")]
    CwdNotDirectory {
        /// The path that was asked for.
        cwd: PathBuf,
    },
    /// The working directory may not be entered.
    #[error("the working directory {cwd:?} may not be entered")]
    CwdNotAccessible {
        /// The directory that was asked for.
        cwd: PathBuf,
    },
    /// One string is over 128 KiB, or argv and environment together are over the kernel's limit
    /// (`getconf ARG_MAX`): `E2BIG`.
    #[error("the arguments and the environment are too long for this machine")]
    TooLong,
    /// No process or no memory to be had: `EAGAIN`, `ENOMEM`. May pass.
    #[error("no process can be made: {0}")]
    NoProcesses(Errno),
    /// No descriptor to be had: `EMFILE`, `ENFILE`. May pass.
    #[error("no descriptor is free: {0}")]
    NoDescriptors(Errno),
    /// Anything else, as the kernel gave it.
    #[error("{0}")]
    Other(Errno),
}

/// The file that `name` (the first string of an argv) stands for, as execvp(3) would find it for a
/// process in `cwd` with `path` as the PATH of its environment (`None`: it has no such variable).
///
/// A name with a slash is a path, relative to `cwd`. Any other is searched in PATH, whose empty and
/// relative entries are relative to `cwd` too. A candidate that may not be executed does not end the
/// search, but is reported if nothing else is found. The result is absolute if `cwd` is.
///
/// # Errors
/// `NotFound`, `NotExecutable`, `IsDirectory`; or, when `cwd` is needed and is at fault, one of the
/// three failures that say so; `Other` for a name that is too long or holds a NUL.
pub fn resolve(name: &[u8], path: Option<&[u8]>, cwd: &Path) -> Result<PathBuf, SpawnFailure> {
    let name_path = Path::new(OsStr::from_bytes(name));
    let not_found = || SpawnFailure::NotFound { program: name_path.to_owned() };
    if name.is_empty() {
        return Err(not_found());
    }
    if name.contains(&b'/') {
        let program = cwd.join(name_path);
        return match check_executable(&program) {
            Ok(()) => Ok(program),
            Err(error) => {
                if name_path.is_relative() {
                    check_cwd(cwd)?;
                }
                Err(describe(error, program))
            }
        };
    }

    let mut refused = None;
    let mut used_cwd = false;
    for directory in path.unwrap_or(DEFAULT_PATH).split(|byte| *byte == b':') {
        let directory = Path::new(OsStr::from_bytes(directory));
        used_cwd |= directory.is_relative();
        // Joining an empty path to `cwd` would leave a slash at the end, which the next join eats.
        let program = cwd.join(directory).join(name_path);
        match check_executable(&program) {
            Ok(()) => return Ok(program),
            Err(error) if search_goes_on(error) => {}
            Err(error @ (Errno::ACCESS | Errno::ISDIR)) => {
                // A file that may not be executed is worth more than a directory of that name.
                if refused.is_none() || error == Errno::ACCESS {
                    refused.get_or_insert((error, program));
                }
            }
            Err(error) => return Err(describe(error, program)),
        }
    }
    if let Some((error, program)) = refused {
        return Err(describe(error, program));
    }
    if used_cwd {
        check_cwd(cwd)?;
    }
    Err(not_found())
}

/// What `error`, as posix_spawn gave it for `program` in `cwd`, means.
///
/// The files are looked at after the fact, so somebody who changes them at that moment can make the
/// answer wrong, but never empty: `Other` keeps the number where nothing explains it.
pub fn diagnose(error: Errno, program: &Path, cwd: &Path) -> SpawnFailure {
    match error {
        Errno::TOOBIG => return SpawnFailure::TooLong,
        Errno::AGAIN | Errno::NOMEM => return SpawnFailure::NoProcesses(error),
        Errno::MFILE | Errno::NFILE => return SpawnFailure::NoDescriptors(error),
        Errno::NOEXEC => return SpawnFailure::BadFormat { program: program.to_owned() },
        _ => {}
    }
    // The child changes its directory first, so this is also the order of the kernel's checks.
    if let Err(failure) = check_cwd(cwd) {
        return failure;
    }
    let file = cwd.join(program);
    if let Err(found) = check_executable(&file) {
        return describe(found, program.to_owned());
    }
    if let Some(interpreter) = broken_interpreter(&file, cwd) {
        return SpawnFailure::BadInterpreter { program: program.to_owned(), interpreter };
    }
    SpawnFailure::Other(error)
}

/// The errors after which execvp(3) tries the next directory: the file is not there, or its
/// directory is not, or the file system that should hold it does not answer.
fn search_goes_on(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::NOTDIR | Errno::STALE | Errno::NODEV | Errno::TIMEDOUT)
}

/// Whether the kernel would let us execute this file, as far as permissions and type tell.
fn check_executable(file: &Path) -> Result<(), Errno> {
    // access(2) knows of ACLs, noexec mounts and root's powers, which mode bits alone do not tell.
    let permitted = accessat(CWD, file, Access::EXEC_OK, AtFlags::empty());
    let file_type = FileType::from_raw_mode(stat(file)?.st_mode);
    match file_type {
        FileType::Directory => Err(Errno::ISDIR),
        FileType::RegularFile => permitted,
        _ => Err(Errno::ACCESS),
    }
}

fn describe(error: Errno, program: PathBuf) -> SpawnFailure {
    match error {
        Errno::NOENT | Errno::NOTDIR => SpawnFailure::NotFound { program },
        Errno::ACCESS => SpawnFailure::NotExecutable { program },
        Errno::ISDIR => SpawnFailure::IsDirectory { program },
        _ => SpawnFailure::Other(error),
    }
}

fn check_cwd(cwd: &Path) -> Result<(), SpawnFailure> {
    let failure = match stat(cwd) {
        Ok(found) if FileType::from_raw_mode(found.st_mode) != FileType::Directory => Errno::NOTDIR,
        Ok(_) => match accessat(CWD, cwd, Access::EXEC_OK, AtFlags::empty()) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        },
        Err(error) => error,
    };
    let cwd = cwd.to_owned();
    Err(match failure {
        Errno::NOENT => SpawnFailure::MissingCwd { cwd },
        Errno::NOTDIR => SpawnFailure::CwdNotDirectory { cwd },
        Errno::ACCESS => SpawnFailure::CwdNotAccessible { cwd },
        error => SpawnFailure::Other(error),
    })
}

#[cfg(test)]
mod tests;

//! `afar supervisor`: the role that runs one user's jobs. Not for people: it is started on demand.

use afar_server::supervisor::{SupervisorConfig, check_state, run};

use crate::args::SupervisorArgs;
use crate::console::say;
use crate::exit::Exit;

/// Runs the supervisor of this user, until it has had nothing to do for a while.
pub(crate) fn cmd_supervisor(args: SupervisorArgs) -> Exit {
    if args.check_state {
        return match check_state() {
            Ok(()) => Exit::Status(0),
            Err(error) => {
                say(&format!("supervisor: cannot go on with this state: {error}"));
                Exit::Failed
            }
        };
    }
    let SupervisorArgs { passed, resume, .. } = args;
    match run(SupervisorConfig { passed, resume, ..SupervisorConfig::default() }) {
        Ok(status) => Exit::Status(status),
        Err(error) => {
            say(&format!("supervisor: {error}"));
            Exit::Failed
        }
    }
}

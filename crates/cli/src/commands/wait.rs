//! `afar wait`: waits for a job and ends as it did.

use afar_client::Attachment;

use crate::args::WaitArgs;
use crate::commands::{block_on, job_place, launch_supervisor, settle_job};
use crate::console::fail;
use crate::exit::Exit;
use crate::run::{JobName, Leaving, RunOptions, Signals, Wanted, execute};

/// Waits for the job. A signal is for this program, not for the job.
pub(crate) fn cmd_wait(args: WaitArgs) -> Exit {
    let (target, job, settings) = match settle_job(&args.job.job, &args.connect) {
        Ok(settled) => settled,
        Err(error) => return fail(&error),
    };
    let client = settings.client().launcher(launch_supervisor).build();
    let (connect, named) = (args.connect.clone(), target.clone());
    let options = RunOptions {
        stdin: false,
        json: false,
        result: args.result,
        verbosity: args.connect.verbosity(),
        argv: Vec::new(),
        leaving: Leaving::AtOnce,
        job_name: JobName(Box::new(move |job| job_place(&named, &connect, job))),
    };
    block_on(async {
        match Signals::install() {
            Ok(signals) => {
                let wanted = Wanted::Attach(Attachment::wait(job));
                execute(&client, &target, wanted, options, signals).await
            }
            Err(exit) => exit,
        }
    })
}

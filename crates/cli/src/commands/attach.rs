//! `afar attach`: goes on with a job.

use afar_client::Attachment;

use crate::args::AttachArgs;
use crate::commands::{block_on, job_place, launch_supervisor, settle_job};
use crate::console::fail;
use crate::exit::Exit;
use crate::run::{JobName, Leaving, RunOptions, Signals, Wanted, execute};

/// Goes on with the job and ends as it does.
pub(crate) fn cmd_attach(args: AttachArgs) -> Exit {
    let (target, job, settings) = match settle_job(&args.job.job, &args.connect) {
        Ok(settled) => settled,
        Err(error) => return fail(&error),
    };
    let client = settings.client().launcher(launch_supervisor).build();
    let (connect, named) = (args.connect.clone(), target.clone());
    let options = RunOptions {
        // Also one that can only say "end": without `-n` that is what it says to the job.
        stdin: !args.no_stdin && !args.watch,
        json: args.json,
        result: args.result,
        verbosity: args.connect.verbosity(),
        argv: Vec::new(),
        // It was there before us, and whoever only came to look at it does not end it.
        leaving: Leaving::Keeps,
        job_name: JobName(Box::new(move |job| job_place(&named, &connect, job))),
    };
    let attachment = if args.watch { Attachment::watch(job) } else { Attachment::take(job) };
    block_on(async {
        match Signals::install() {
            Ok(signals) => {
                execute(&client, &target, Wanted::Attach(attachment), options, signals).await
            }
            Err(exit) => exit,
        }
    })
}

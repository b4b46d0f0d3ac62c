//! `lowrank predict`: one JSON line a row with the label, the probabilities and the logits at full
//! precision.

use lowrank_run::loaded::{BATCH_SIZE, batch_size};
use lowrank_run::predict::{Predictor, Source};
use lowrank_run::{RunError, RunResult, targets};

use crate::args::PredictArgs;
use crate::session::{device_of, open_model, say_notes};
use crate::sink::Sink;
use crate::{output, settings, unused};

/// Runs the command.
pub fn run(flags: PredictArgs) -> RunResult {
    let file = flags.common.config.clone();
    let args = settings::with_file(flags, file.as_deref())?;
    targets::check_file(
        args.output_file.as_deref(),
        &[
            ("--data-file", args.data_file.as_deref()),
            ("--config", args.common.config.as_deref()),
        ],
    )?;
    let numerics = args.numerics.choices().without_int8()?.or_f32();
    let device = device_of(&args.common, numerics, &args.model, &args.adapter)?;
    let size = batch_size(args.per_device_eval_batch_size, BATCH_SIZE)?;
    let data = args.data.settings()?;
    let loaded = open_model(&args.model, &args.adapter, &data, &device)?;
    let predictor = Predictor::new(&loaded, args.aggregation_strategy)?;
    unused::check_predict(unused::given_args(&args), &args, &loaded)?;
    let (source, name) = match (&args.data_file, &args.text) {
        (Some(path), _) => (Source::File(path), path.as_str()),
        (None, Some(texts)) => (Source::Texts(texts), "the texts given"),
        (None, None) => {
            return Err(RunError::usage("no rows given").hint(
                "pass --data-file FILE (.jsonl, .csv or .tsv), or --text with one or more texts",
            ));
        }
    };
    let rows = predictor.read(&source, &data, size)?;
    if !args.common.is_quiet() {
        loaded.notes.iter().for_each(output::note);
    }
    say_notes(name, rows.loaded(), &args.common);
    if let (cut @ 1.., false) = (rows.cut_words(), args.common.is_quiet()) {
        output::note(format_args!(
            "{cut} words are beyond --max-length {} and have no label (null)",
            loaded.max_length
        ));
    }
    let mut sink = Sink::open(args.output_file.as_deref())?;
    predictor.predict(&rows, &mut |line| sink.write(line))?;
    sink.commit()
}

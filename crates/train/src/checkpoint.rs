//! Checkpoints: everything a run needs to go on as if it had never stopped, bit for bit.
//!
//! A checkpoint is a folder `checkpoint-<step>` in the run's folder: `state.json` (where the run stands), `state.safetensors`
//! (trained values and the optimizer's moments), and for adapters PEFT's own two files. It is written under a temporary name
//! and renamed when complete, so a folder with the final name is a whole one; its tensor file's hash stands in `state.json`
//! all the same, and a checkpoint that does not match is passed over.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use lowrank_data::Cursor;
use lowrank_engine::Trainables;
use lowrank_formats::{
    Checkpoint as TensorFile, FormatError, OutTensor, PendingDir, write_safetensors,
};
use serde::{Deserialize, Serialize};

use crate::best::BestState;
use crate::config::TrainConfig;
use crate::fingerprint;
use crate::optimizer::Optimizer;

const STATE_FILE: &str = "state.json";
const TENSOR_FILE: &str = "state.safetensors";
const PREFIX: &str = "checkpoint-";

/// Version of the checkpoint's layout.
const LAYOUT: u32 = 1;

/// Where a run stands after an optimizer step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Version of this layout.
    pub layout: u32,
    /// Optimizer steps done.
    pub step: u64,
    /// Micro-batches done; the dropout masks count by it.
    pub micro_step: u64,
    /// The next row.
    pub cursor: Cursor,
    /// Step of the last evaluation.
    pub evaluated_step: Option<u64>,
    /// Whether early stopping has ended the run.
    pub stopped_early: bool,
    /// The best evaluation and the patience used.
    pub best: BestState,
    /// Seconds since the start, evaluations included, pauses between resumes not.
    pub elapsed_s: f64,
    /// Seconds of them that were optimizer steps.
    pub training_s: f64,
    /// Real tokens trained on so far.
    pub tokens: u64,
    /// For each trained value: its fingerprint before the first step, and whether a gradient other than 0 has come.
    pub proof: BTreeMap<String, ProofState>,
    /// The configuration.
    pub config: TrainConfig,
    /// Fingerprint of the training rows.
    pub train_rows: String,
    /// Fingerprint of the validation rows.
    pub validation_rows: Option<String>,
    /// SHA-256 of the tensor file.
    #[serde(default)]
    pub tensors: String,
}

/// What is remembered of one trained value, to prove afterwards that it was trained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProofState {
    /// Fingerprint before the first step, in hexadecimal (JSON numbers do not hold 64 bits everywhere).
    pub start: String,
    /// Whether a gradient other than 0 has come.
    pub had_gradient: bool,
}

impl RunState {
    /// The state before the first step.
    pub fn new(
        config: &TrainConfig,
        train_rows: String,
        validation_rows: Option<String>,
        trainables: &Trainables,
    ) -> Self {
        let proof = trainables.iter().map(|(_, t)| {
            let start = format!("{:016x}", fingerprint::of_values(t.value.data()));
            (
                t.name.clone(),
                ProofState {
                    start,
                    had_gradient: false,
                },
            )
        });
        Self {
            layout: LAYOUT,
            step: 0,
            micro_step: 0,
            cursor: Cursor::default(),
            evaluated_step: None,
            stopped_early: false,
            best: BestState::default(),
            elapsed_s: 0.0,
            training_s: 0.0,
            tokens: 0,
            proof: proof.collect(),
            config: config.clone(),
            train_rows,
            validation_rows,
            tensors: String::new(),
        }
    }
}

/// What can go wrong with checkpoints.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Reading or writing failed.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The adapter's own files could not be written into the checkpoint.
    #[error(transparent)]
    Model(#[from] lowrank_model::ModelError),
    /// A checkpoint is not whole.
    #[error("`{}` is not a usable checkpoint: {reason}", path.display())]
    Invalid {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// A checkpoint that was read and found whole.
#[derive(Debug)]
pub struct Found {
    /// The folder.
    pub path: PathBuf,
    /// Where the run stood.
    pub state: RunState,
}

/// The checkpoints of one run.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    run: PathBuf,
    keep: usize,
}

impl Checkpoints {
    /// Those in the run's folder, of which the newest `keep` stay, and the best.
    pub fn new(run: &Path, keep: usize) -> Self {
        Self {
            run: run.to_owned(),
            keep: keep.max(1),
        }
    }

    /// The folder of a step's checkpoint.
    pub fn path_of(&self, step: u64) -> PathBuf {
        self.run.join(format!("{PREFIX}{step}"))
    }

    /// Writes the checkpoint of `state.step`, unless it is there already, and removes those that are no longer kept.
    /// `export` adds the adapter's own files.
    ///
    /// # Errors
    /// The disk refuses; nothing that was there before is lost.
    pub fn write(
        &self,
        state: &RunState,
        trainables: &Trainables,
        optimizer: &Optimizer,
        export: &dyn Fn(&Path) -> Result<(), lowrank_model::ModelError>,
    ) -> Result<PathBuf, CheckpointError> {
        let target = self.path_of(state.step);
        let pending = PendingDir::create(&target)?;
        let tensors = pending.path().join(TENSOR_FILE);
        write_tensors(&tensors, trainables, optimizer)?;
        export(pending.path())?;
        let state = RunState {
            tensors: file_hash(&tensors)?,
            ..state.clone()
        };
        let json = serde_json::to_vec_pretty(&state).map_err(|error| invalid(&target, error))?;
        lowrank_formats::write_atomic(&pending.path().join(STATE_FILE), &json)?;
        // The same step is written again when an interrupted evaluation was made up for after a resume.
        pending.commit_replacing()?;
        self.remove_old(&state)?;
        Ok(target)
    }

    /// Steps of all checkpoints, ascending, whole or not.
    pub fn steps(&self) -> Vec<u64> {
        let entries = fs::read_dir(&self.run).into_iter().flatten().flatten();
        let step = |name: std::ffi::OsString| name.to_str()?.strip_prefix(PREFIX)?.parse().ok();
        let mut steps: Vec<u64> = entries
            .filter_map(|entry| step(entry.file_name()))
            .collect();
        steps.sort_unstable();
        steps
    }

    /// The newest whole checkpoint, whose best one is there too; and why newer ones were passed over.
    pub fn newest(&self) -> (Option<Found>, Vec<CheckpointError>) {
        let mut passed_over = Vec::new();
        for step in self.steps().into_iter().rev() {
            match self.check_with_best(step) {
                Ok(found) => return (Some(found), passed_over),
                Err(error) => passed_over.push(error),
            }
        }
        (None, passed_over)
    }

    fn check_with_best(&self, step: u64) -> Result<Found, CheckpointError> {
        let found = check(&self.path_of(step))?;
        match found.state.best.best_step {
            Some(best) if best != step => check(&self.path_of(best)).map(|_| found),
            Some(_) | None => Ok(found),
        }
    }

    /// Removes checkpoints that are neither among the newest nor the best.
    fn remove_old(&self, state: &RunState) -> Result<(), CheckpointError> {
        // After a resume from an older checkpoint, later ones are of a discarded past and will be written anew.
        let steps: Vec<u64> = self
            .steps()
            .into_iter()
            .filter(|&s| s <= state.step)
            .collect();
        let newest = steps.len().saturating_sub(self.keep);
        for &step in &steps[..newest] {
            if Some(step) != state.best.best_step {
                let path = self.path_of(step);
                fs::remove_dir_all(&path).map_err(|error| FormatError::Io {
                    action: "remove",
                    path,
                    error,
                })?;
            }
        }
        Ok(())
    }
}

/// Reads a checkpoint's state and checks that its tensor file is the one it names.
///
/// # Errors
/// The folder is not a whole checkpoint.
pub fn check(path: &Path) -> Result<Found, CheckpointError> {
    let file = path.join(STATE_FILE);
    let json = fs::read(&file).map_err(|error| FormatError::Io {
        action: "read",
        path: file,
        error,
    })?;
    let state: RunState = serde_json::from_slice(&json).map_err(|error| invalid(path, error))?;
    if state.layout != LAYOUT {
        return Err(invalid(
            path,
            format!("layout {}, expected {LAYOUT}", state.layout),
        ));
    }
    if file_hash(&path.join(TENSOR_FILE))? != state.tensors {
        return Err(invalid(
            path,
            format!("`{TENSOR_FILE}` is not the file that `{STATE_FILE}` names"),
        ));
    }
    Ok(Found {
        path: path.to_owned(),
        state,
    })
}

/// Sets the trained values to those of a checkpoint, and the optimizer's moments where one is given.
///
/// # Errors
/// The checkpoint holds other tensors than this run trains.
pub fn restore(
    path: &Path,
    trainables: &mut Trainables,
    mut optimizer: Option<&mut Optimizer>,
) -> Result<(), CheckpointError> {
    let file = TensorFile::open_file(&path.join(TENSOR_FILE))?;
    let expected = 3 * trainables.len();
    if file.infos().len() != expected {
        return Err(invalid(
            path,
            format!("{} tensors, expected {expected}", file.infos().len()),
        ));
    }
    let ids: Vec<_> = trainables.iter().map(|(id, _)| id).collect();
    for (i, id) in ids.into_iter().enumerate() {
        let trainable = trainables.get_mut(id);
        let name = trainable.name.clone();
        file.read_f32(&format!("value/{name}"), trainable.value.data_mut())?;
        if let Some(moments) = optimizer.as_deref_mut().map(|o| &mut o.moments_mut()[i]) {
            file.read_f32(&format!("adam_m/{name}"), moments.m.data_mut())?;
            file.read_f32(&format!("adam_v/{name}"), moments.v.data_mut())?;
        }
    }
    Ok(())
}

fn write_tensors(
    path: &Path,
    trainables: &Trainables,
    optimizer: &Optimizer,
) -> Result<(), CheckpointError> {
    let mut named = Vec::with_capacity(3 * trainables.len());
    for ((_, t), moments) in trainables.iter().zip(optimizer.moments()) {
        for (kind, tensor) in [
            ("value", &t.value),
            ("adam_m", &moments.m),
            ("adam_v", &moments.v),
        ] {
            named.push((format!("{kind}/{}", t.name), &t.shape, tensor.data()));
        }
    }
    let tensors: Vec<_> = named
        .iter()
        .map(|(name, shape, data)| OutTensor::f32(name, shape, data))
        .collect();
    write_safetensors(path, &tensors, &[])?;
    Ok(())
}

fn file_hash(path: &Path) -> Result<String, FormatError> {
    let bytes = fs::read(path).map_err(|error| FormatError::Io {
        action: "read",
        path: path.to_owned(),
        error,
    })?;
    Ok(fingerprint::of_bytes(&bytes))
}

fn invalid(path: &Path, reason: impl std::fmt::Display) -> CheckpointError {
    CheckpointError::Invalid {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::example;
    use lowrank_engine::{Device, Isa};

    fn parts(values: &[f32]) -> (Trainables, Optimizer) {
        let device = Device::cpu(Isa::Scalar, 1).unwrap();
        let mut trainables = Trainables::default();
        trainables.add(&device, "a.weight".to_owned(), &[values.len()], values);
        let optimizer = Optimizer::new(&device, &trainables, &example().optimization);
        (trainables, optimizer)
    }

    fn state(step: u64, trainables: &Trainables) -> RunState {
        RunState {
            step,
            ..RunState::new(&example(), "rows".to_owned(), None, trainables)
        }
    }

    fn nothing(_: &Path) -> Result<(), lowrank_model::ModelError> {
        Ok(())
    }

    #[test]
    fn values_and_moments_come_back_bit_for_bit() {
        let dir = tempfile::tempdir().unwrap();
        let (trainables, mut optimizer) = parts(&[1.0, -0.0, f32::MIN_POSITIVE]);
        optimizer.moments_mut()[0]
            .m
            .data_mut()
            .copy_from_slice(&[0.1, 0.2, 0.3]);
        let all = Checkpoints::new(dir.path(), 2);
        let path = all
            .write(&state(7, &trainables), &trainables, &optimizer, &nothing)
            .unwrap();
        let (mut back, mut other) = parts(&[0.0; 3]);
        restore(&path, &mut back, Some(&mut other)).unwrap();
        let bits = |t: &Trainables| {
            t.iter()
                .flat_map(|(_, t)| t.value.data().to_vec())
                .map(f32::to_bits)
                .collect::<Vec<_>>()
        };
        assert_eq!(bits(&back), bits(&trainables));
        assert_eq!(other.moments()[0].m.data(), &[0.1, 0.2, 0.3]);
        let (found, passed_over) = all.newest();
        assert_eq!(found.unwrap().state.step, 7);
        assert!(passed_over.is_empty());
    }

    #[test]
    fn the_newest_and_the_best_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (trainables, optimizer) = parts(&[1.0]);
        let all = Checkpoints::new(dir.path(), 2);
        for step in [10, 20, 30, 40, 100] {
            let mut state = state(step, &trainables);
            state.best.best_step = Some(10);
            all.write(&state, &trainables, &optimizer, &nothing)
                .unwrap();
        }
        assert_eq!(all.steps(), [10, 40, 100]);
    }

    #[test]
    fn broken_checkpoints_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let (trainables, optimizer) = parts(&[1.0, 2.0]);
        let all = Checkpoints::new(dir.path(), 3);
        for step in [1, 2, 3] {
            all.write(&state(step, &trainables), &trainables, &optimizer, &nothing)
                .unwrap();
        }
        let tensors = all.path_of(3).join(TENSOR_FILE);
        let bytes = fs::read(&tensors).unwrap();
        fs::write(&tensors, &bytes[..bytes.len() - 1]).unwrap();
        fs::remove_file(all.path_of(2).join(STATE_FILE)).unwrap();
        let (found, passed_over) = all.newest();
        assert_eq!(found.unwrap().state.step, 1);
        assert_eq!(passed_over.len(), 2);
    }

    #[test]
    fn a_failed_export_leaves_nothing_under_the_final_name() {
        let dir = tempfile::tempdir().unwrap();
        let (trainables, optimizer) = parts(&[1.0]);
        let all = Checkpoints::new(dir.path(), 1);
        let refuse = |_: &Path| Err(lowrank_model::ModelError::State("no".to_owned()));
        assert!(
            all.write(&state(1, &trainables), &trainables, &optimizer, &refuse)
                .is_err()
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

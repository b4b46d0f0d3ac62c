//! Checkpoints: everything a run needs to go on as if it had never stopped, bit for bit.
//!
//! A checkpoint is a folder `checkpoint-<step>` in the run's folder: `state.json` (where the run
//! stands), `state.safetensors` (trained values and the optimizer's moments), and for adapters
//! PEFT's own two files. It is written under a temporary name and renamed when complete, so a
//! folder with the final name is a whole one; its tensor file's hash stands in `state.json` all the
//! same, and a checkpoint that does not match is passed over.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lowrank_engine::{Tensor, Trainables};
use lowrank_formats::files::{self, shown};
use lowrank_formats::{
    Checkpoint as TensorFile, DType, FormatError, PendingDir, TensorSpec, f32_bytes,
    write_safetensors_streaming,
};

use crate::fingerprint;
use crate::optimizer::Optimizer;
pub use crate::run_state::{ProofState, RunState, STATE_FILE};
use crate::seal;

const TENSOR_FILE: &str = "state.safetensors";
const PREFIX: &str = "checkpoint-";

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
    #[error("`{}` is not a usable checkpoint: {reason}", shown(path))]
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

/// What there is to go on from.
#[derive(Debug, Default)]
pub struct Newest {
    /// The newest whole checkpoint.
    pub found: Option<Found>,
    /// Why newer ones were passed over.
    pub passed_over: Vec<CheckpointError>,
    /// What is wrong with the checkpoint that it names as the best one.
    pub lost_best: Option<CheckpointError>,
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

    /// Writes the checkpoint of `state.step`, unless it is there already, and removes those that
    /// are no longer kept. `export` adds the adapter's own files.
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
        let json = seal::seal(&state).map_err(|error| invalid(&target, error))?;
        lowrank_formats::write_atomic(&pending.path().join(STATE_FILE), &json)?;
        // The same step is written again when an interrupted evaluation was made up for after a
        // resume.
        pending.commit_replacing()?;
        self.remove_old(&state)?;
        Ok(target)
    }

    /// Steps of all checkpoints, ascending, whole or not. Files, and folders of other names, are
    /// none.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn steps(&self) -> Result<Vec<u64>, FormatError> {
        let entries = match files::exists(&self.run) {
            true => files::list(&self.run)?,
            false => Vec::new(),
        };
        let step = |name: &std::ffi::OsStr| name.to_str()?.strip_prefix(PREFIX)?.parse().ok();
        let mut steps: Vec<u64> = entries
            .iter()
            .filter_map(|entry| step(&entry.name))
            .filter(|&step| files::is_dir(&self.path_of(step)))
            .collect();
        steps.sort_unstable();
        steps.dedup();
        Ok(steps)
    }

    /// The newest whole checkpoint for which `fits` has no objection, and what is wrong with newer
    /// ones and with the best.
    pub fn newest(&self, fits: &dyn Fn(&RunState) -> Result<(), String>) -> Newest {
        let mut newest = Newest::default();
        let steps = match self.steps() {
            Ok(steps) => steps,
            Err(error) => {
                newest.passed_over.push(error.into());
                return newest;
            }
        };
        for step in steps.into_iter().rev() {
            let path = self.path_of(step);
            let found = check(&path).and_then(|found| {
                let state = file_reason(STATE_FILE, fits(&found.state));
                state.map_err(|reason| invalid(&path, reason))?;
                Ok(found)
            });
            match found {
                Ok(found) => {
                    let best = found.state.best.best_step.filter(|best| *best != step);
                    newest.lost_best = best.and_then(|best| check(&self.path_of(best)).err());
                    newest.found = Some(found);
                    return newest;
                }
                Err(error) => newest.passed_over.push(error),
            }
        }
        newest
    }

    /// Removes checkpoints that are neither among the newest nor the best.
    fn remove_old(&self, state: &RunState) -> Result<(), CheckpointError> {
        // After a resume from an older checkpoint, later ones are of a discarded past and will be
        // written anew.
        let steps: Vec<u64> = self
            .steps()?
            .into_iter()
            .filter(|&s| s <= state.step)
            .collect();
        let newest = steps.len().saturating_sub(self.keep);
        for &step in &steps[..newest] {
            if Some(step) != state.best.best_step {
                let path = self.path_of(step);
                files::remove_dir_all(&path)?;
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
    let state = RunState::read(path)?;
    let named = path.file_name().and_then(|name| name.to_str());
    let named = named.and_then(|name| name.strip_prefix(PREFIX)?.parse::<u64>().ok());
    if named.is_some_and(|step| step != state.step) {
        let reason = format!("`{STATE_FILE}` is of step {}", state.step);
        return Err(invalid(path, reason));
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

/// Sets the trained values to those of a checkpoint, and the optimizer's moments where one is
/// given.
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
        let read = |kind: &str, into: &mut Tensor| {
            let mut values = vec![0.0; into.len()];
            file.read_f32(&format!("{kind}/{name}"), &mut values)?;
            into.write(&values);
            Ok::<(), FormatError>(())
        };
        read("value", &mut trainable.value)?;
        if let Some(moments) = optimizer.as_deref_mut().map(|o| &mut o.moments_mut()[i]) {
            read("adam_m", &mut moments.m)?;
            read("adam_v", &mut moments.v)?;
        }
    }
    Ok(())
}

fn write_tensors(
    path: &Path,
    trainables: &Trainables,
    optimizer: &Optimizer,
) -> Result<(), CheckpointError> {
    let (mut specs, mut tensors) = (Vec::new(), BTreeMap::new());
    for ((_, t), moments) in trainables.iter().zip(optimizer.moments()) {
        let of_value = [
            ("value", &t.value),
            ("adam_m", &moments.m),
            ("adam_v", &moments.v),
        ];
        for (kind, tensor) in of_value {
            let name = format!("{kind}/{}", t.name);
            tensors.insert(name.clone(), tensor);
            specs.push(TensorSpec {
                name,
                dtype: DType::F32,
                shape: t.shape.clone(),
            });
        }
    }
    write_safetensors_streaming(path, &specs, &[], &mut |spec, writer| {
        writer.write_all(&f32_bytes(&tensors[&spec.name].read()))
    })?;
    Ok(())
}

fn file_hash(path: &Path) -> Result<String, FormatError> {
    fingerprint::of_files(&[path.to_owned()])
}

/// A reason with the file in which it lies.
fn file_reason(file: &str, result: Result<(), String>) -> Result<(), String> {
    result.map_err(|reason| format!("`{file}`: {reason}"))
}

pub(crate) fn invalid(path: &Path, reason: impl std::fmt::Display) -> CheckpointError {
    CheckpointError::Invalid {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::best::BestState;
    use crate::config::tests::example;
    use lowrank_engine::{Device, Isa};
    use std::fs;

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
        optimizer.moments_mut()[0].m.write(&[0.1, 0.2, 0.3]);
        let all = Checkpoints::new(dir.path(), 2);
        let path = all
            .write(&state(7, &trainables), &trainables, &optimizer, &nothing)
            .unwrap();
        let (mut back, mut other) = parts(&[0.0; 3]);
        restore(&path, &mut back, Some(&mut other)).unwrap();
        let bits = |t: &Trainables| {
            t.iter()
                .flat_map(|(_, t)| t.value.read())
                .map(f32::to_bits)
                .collect::<Vec<_>>()
        };
        assert_eq!(bits(&back), bits(&trainables));
        assert_eq!(other.moments()[0].m.read(), &[0.1, 0.2, 0.3]);
        let newest = all.newest(&|_| Ok(()));
        assert_eq!(newest.found.unwrap().state.step, 7);
        assert!(newest.passed_over.is_empty());
    }

    #[test]
    fn the_newest_and_the_best_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (trainables, optimizer) = parts(&[1.0]);
        let all = Checkpoints::new(dir.path(), 2);
        for step in [10, 20, 30, 40, 100] {
            let mut state = state(step, &trainables);
            state.best.best_step = Some(10);
            state.best.best_value = Some(0.5);
            all.write(&state, &trainables, &optimizer, &nothing)
                .unwrap();
        }
        assert_eq!(all.steps().unwrap(), [10, 40, 100]);
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
        let newest = all.newest(&|_| Ok(()));
        assert_eq!(newest.found.unwrap().state.step, 1);
        let reasons: Vec<_> = newest.passed_over.iter().map(ToString::to_string).collect();
        assert!(
            reasons.len() == 2 && reasons[0].contains(TENSOR_FILE),
            "{reasons:?}"
        );
        assert!(reasons[1].contains(STATE_FILE), "{reasons:?}");
    }

    #[test]
    fn a_newer_checkpoint_is_used_although_the_best_one_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let (trainables, optimizer) = parts(&[1.0]);
        let all = Checkpoints::new(dir.path(), 3);
        for step in [1, 2] {
            let best = BestState {
                best_step: Some(1),
                best_value: Some(0.5),
                ..BestState::default()
            };
            let state = RunState {
                best,
                evaluated_step: Some(step),
                ..state(step, &trainables)
            };
            all.write(&state, &trainables, &optimizer, &nothing)
                .unwrap();
        }
        let file = all.path_of(1).join(STATE_FILE);
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replace("\"tokens\": 0", "\"tokens\": 1")).unwrap();
        let newest = all.newest(&|_| Ok(()));
        assert_eq!(newest.found.unwrap().state.step, 2);
        let lost = newest.lost_best.unwrap().to_string();
        assert!(
            lost.contains("checkpoint-1") && lost.contains("checksum"),
            "{lost}"
        );
    }

    #[test]
    fn strays_are_no_checkpoints_and_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "checkpoint-x",
            "checkpoint-",
            "checkpoint-+7",
            "checkpoint-07",
        ] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("checkpoint-9"), "a file").unwrap();
        let (trainables, optimizer) = parts(&[1.0]);
        let all = Checkpoints::new(dir.path(), 1);
        for step in [20, 30] {
            all.write(&state(step, &trainables), &trainables, &optimizer, &nothing)
                .unwrap();
        }
        assert_eq!(all.steps().unwrap(), [30]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 6);
    }

    #[test]
    fn a_folder_of_another_name_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let (trainables, optimizer) = parts(&[1.0]);
        let all = Checkpoints::new(dir.path(), 1);
        let path = all
            .write(&state(3, &trainables), &trainables, &optimizer, &nothing)
            .unwrap();
        fs::rename(path, all.path_of(5)).unwrap();
        let newest = all.newest(&|_| Ok(()));
        assert!(newest.found.is_none());
        let reason = newest.passed_over[0].to_string();
        assert!(
            reason.contains("checkpoint-5") && reason.contains("of step 3"),
            "{reason}"
        );
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

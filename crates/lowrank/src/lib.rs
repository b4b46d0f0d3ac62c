//! LoRA fine-tuning of transformers as a library: load a Hugging Face model, attach low-rank
//! adapters, train them, save them as PEFT files, merge them. This crate only gathers the parts;
//! the program `lowrank` is built on the same ones.
//!
//! What the commands do is in [`run`]: [`run::train`], [`run::predict`], [`run::loaded`] (`eval`),
//! [`run::scoring`], [`run::writer`] (`generate`), [`run::merge`], [`run::convert`],
//! [`run::model_plan`] and [`run::profile`].
//!
//! # A whole run
//!
//! As the command line does it: settings by name, as its flags and files have them, become one
//! specification; it is planned, trained a step at a time, evaluated and saved. What is left out
//! has the program's defaults.
//!
//! ```
//! use std::sync::atomic::AtomicBool;
//!
//! use lowrank::run::folder::Existing;
//! use lowrank::run::loaded::LoadedModel;
//! use lowrank::run::predict::{Predictor, Source};
//! use lowrank::run::settings::{AdapterSettings, ModelSettings, RowSettings};
//! use lowrank::run::spec::{Host, Request, RunSpec};
//! use lowrank::run::train::{Advance, Prepared};
//! use lowrank::train::trainer::Watch;
//! use serde_json::json;
//!
//! # let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
//! # let root = golden.join("bert-single-label");
//! # let (base, out) = (root.join("model").display().to_string(), tempfile::tempdir()?);
//! # let path = |name: &str| out.path().join(name).display().to_string();
//! // Rows of text need the model's tokenizer; these are token ids already.
//! let label = |i: u32| if i % 2 == 0 { "no" } else { "yes" };
//! let row = |i: u32| json!({ "input_ids": [2, 5 + i, 3], "label": label(i) }).to_string();
//! std::fs::write(path("rows.jsonl"), (0..8).map(row).collect::<Vec<_>>().join("\n"))?;
//!
//! let settings = json!({
//!     "model": base, "train_file": path("rows.jsonl"), "output_dir": path("run"),
//!     "r": 4, "learning_rate": 0.01, "max_steps": 3, "threads": 1,
//! });
//! let request = Request::new(settings.as_object().cloned().unwrap_or_default())?;
//! let spec = RunSpec::resolve(&request, &Host::default())?;
//! assert_eq!(spec.config.data.labels, ["no", "yes"]);
//! let prepared = Prepared::new(spec, Existing::Refuse)?;
//! println!("{} bytes of tensors at the peak", prepared.plan.peak.total());
//!
//! let stop = AtomicBool::new(false);
//! let watch = Watch { stop: &stop, on_event: &|_| {} };
//! let mut run = prepared.start(watch)?;
//! let summary = loop {
//!     match run.advance(watch)? {
//!         Advance::Stepped => println!("{} base parameters", run.model().base_parameters()),
//!         Advance::Finished(summary) => break summary,
//!     }
//! };
//! let results = run.finish(*summary)?;
//! assert_eq!(results.summary.steps, 3);
//!
//! // The adapter, on the base that it names.
//! let adapter = AdapterSettings { adapter: Some(path("run")), ..AdapterSettings::default() };
//! let device = results.model.device();
//! let (model, rows) = (ModelSettings::default(), RowSettings::default());
//! let loaded = LoadedModel::open(&model, &adapter, &rows, device)?;
//! assert_eq!(loaded.head.labels, ["no", "yes"]);
//! let predictor = Predictor::new(&loaded, None)?;
//! let rows = path("rows.jsonl");
//! let rows = predictor.read(&Source::File(&rows), &RowSettings::default(), 4)?;
//! predictor.predict(&rows, &mut |line| {
//!     println!("{line}");
//!     Ok(())
//! })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Load, adapt, train, save, merge
//!
//! The same by hand.
//!
//! ```
//! use std::path::Path;
//!
//! use lowrank::engine::{Device, Gradients, Isa};
//! use lowrank::model::{Batch, LoadOptions, MergeOptions, Model, PassOptions, Targets, Task};
//! use lowrank::peft::LoraConfig;
//! use lowrank::train::config::OptimizationSettings;
//! use lowrank::train::optimizer::{Optimizer, clip_grad_norm};
//!
//! # let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/bert-single-label");
//! # let (base, out) = (root.join("model"), tempfile::tempdir()?);
//! # let out = out.path();
//! // Load: every weight is frozen, and the report says what was new or unused.
//! let device = Device::cpu(Isa::best(), 2)?;
//! let options = LoadOptions::new(Task::SingleLabel, 2);
//! let (mut model, report) = Model::load(&base, &options, &device)?;
//! assert!(report.unused.is_empty());
//!
//! // Adapt: a pattern that matches nothing is an error that names the nearest module.
//! let config = LoraConfig { r: 4, ..LoraConfig::default() };
//! let adapted = model.attach_lora(&config, 1)?;
//! println!("{} adapted layers, {} values", adapted.modules.len(), adapted.adapter_parameters());
//!
//! // Train: sequences lie end to end, without padding.
//! let (input_ids, offsets, labels) = ([2, 17, 5, 3, 2, 9, 3], [0, 4, 7], [1, 0]);
//! let batch = Batch { input_ids: &input_ids, token_type_ids: None, offsets: &offsets };
//! let mut gradients = Gradients::zeros(&device, model.trainables());
//! let settings = OptimizationSettings::default();
//! let mut optimizer = Optimizer::new(&device, model.trainables(), &settings);
//! let mut losses = Vec::new();
//! for step in 1..=20 {
//!     gradients.clear();
//!     let pass = PassOptions { grad_scale: 1.0 / 2.0, ..PassOptions::default() };
//!     let targets = Targets::Class(&labels);
//!     let (sum, count) = model.forward_backward(&batch, targets, &pass, &mut gradients)?;
//!     clip_grad_norm(&device, &mut gradients, 1.0);
//!     optimizer.step(model.trainables_mut(), &gradients, 1e-2, step);
//!     losses.push(sum / count as f64);
//! }
//! assert!(losses[19] < losses[0]);
//!
//! // Save: `adapter_config.json` and `adapter_model.safetensors`, as PEFT writes and reads them.
//! model.save_adapter(&out.join("adapter"), Some("my-base"))?;
//!
//! // Merge: an ordinary Hugging Face directory.
//! std::fs::create_dir(out.join("merged"))?;
//! let merge = MergeOptions { dtype: None, max_shard_bytes: 5_000_000_000, labels: None };
//! model.write_merged(&base, &out.join("merged"), &merge)?;
//! let (merged, _) = Model::load(&out.join("merged"), &options, &device)?;
//! for (a, b) in merged.logits(&batch)?.iter().zip(model.logits(&batch)?) {
//!     assert!((a - b).abs() < 1e-5);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Generate
//!
//! Requests join and leave between steps; what each gets does not depend on the others.
//!
//! ```
//! use lowrank::engine::{Device, Isa};
//! use lowrank::model::{Event, Generate, LoadOptions, Model, Request, Task};
//!
//! # let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
//! # let base = golden.join("gpt2-causal/model");
//! let options = LoadOptions::new(Task::CausalLm, 1);
//! let (model, _) = Model::load(&base, &options, &Device::cpu(Isa::best(), 2)?)?;
//! let options = Generate { max_new_tokens: 4, ..Generate::default() };
//! let request = |number, prompt: &[u32]| {
//!     Request { prompt: prompt.to_vec(), options: options.clone().into(), number, prefix: None }
//! };
//! let mut session = model.session()?;
//! session.add(request(0, &[5, 17, 9]))?;
//! let mut texts = Vec::new();
//! for step in 0.. {
//!     if step == 2 {
//!         session.add(request(1, &[3]))?;
//!     }
//!     for event in session.step() {
//!         match event {
//!             Event::Token(id, token) => println!("{id:?}: {token}"),
//!             Event::Finished(_, generated) => texts.push(generated.tokens),
//!             Event::Failed(_, error) => return Err(error.into()),
//!         }
//!     }
//!     if session.is_empty() {
//!         break;
//!     }
//! }
//! assert_eq!(texts.len(), 2);
//! assert_eq!(texts[1], model.generate(&[vec![3]], &options)?[0].tokens);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Plan
//!
//! The planner is the model run dry: the same code with shapes only.
//!
//! ```
//! use lowrank::engine::Device;
//! use lowrank::model::{ModelConfig, LoadOptions, Model, Task};
//! use lowrank::peft::LoraConfig;
//!
//! let config = serde_json::json!({
//!     "model_type": "roberta", "vocab_size": 50265, "hidden_size": 768, "num_hidden_layers": 12,
//!     "num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 514,
//!     "type_vocab_size": 1,
//! });
//! let config = ModelConfig::from_value("config.json".as_ref(), config)?;
//! let options = LoadOptions::new(Task::SingleLabel, 2);
//! let mut model = Model::from_config(config, &options, &Device::dry())?;
//! let adapted = model.attach_lora(&LoraConfig::default(), 1)?;
//! // The paper's RoBERTa-base row: r = 8 on query and value.
//! assert_eq!(adapted.adapter_parameters(), 294_912);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Score generated text
//!
//! ```
//! use lowrank::metrics::{Segment, bleu, ptb, rouge_l};
//!
//! let references = ["There is a cheap pub by the river."];
//! let segments = [Segment::new("A cheap pub by the river.", references)];
//! assert!(bleu::score(&segments) > 0.5);
//! assert!(rouge_l::score(&ptb::tokenize_all(&segments)) > 0.8);
//! ```

pub use lowrank_data as data;
pub use lowrank_engine as engine;
pub use lowrank_formats as formats;
pub use lowrank_formats::peft;
pub use lowrank_kernels as kernels;
pub use lowrank_metrics as metrics;
pub use lowrank_model as model;
pub use lowrank_run as run;
pub use lowrank_train as train;

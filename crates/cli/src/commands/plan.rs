//! `lowrank plan`: what a run would need, from the code that would run it, on a device that only
//! counts.

mod choices;

use std::path::Path;

use lowrank_engine::Purpose;
use lowrank_formats::{files, to_python_json, write_atomic};
use lowrank_model::{Recompute, builtin_config, builtin_names};
use lowrank_run::memory::by_purpose;
use lowrank_run::model_plan::{ModelPlan, PlanSettings, Subject, Way};
use lowrank_run::unused::Unused;
use lowrank_run::{RunError, RunResult, targets};
use lowrank_train::plan::Needs;
use serde_json::{Value, json};

use crate::args::PlanArgs;
use crate::output::{self, TextTable, bytes, count, percent};
use crate::unused::check_plan;
use crate::{presets, session, settings, unused};

/// Runs the command.
pub fn run(flags: PlanArgs) -> RunResult {
    let file = flags.common.config.clone();
    let unused = unused::given(&flags, file.as_deref())?;
    let args = presets::with_preset(flags, file.as_deref(), |args| &args.preset)?;
    if let Some(dir) = &args.write_config {
        write_config(&args, dir)?;
    }
    let shown = Shown::make(&args, unused)?;
    if args.common.is_json() {
        output::print_json(&shown.to_json());
    } else {
        output::print(shown.to_text());
    }
    Ok(())
}

/// Writes a built-in configuration, so that a model can be trained from it.
fn write_config(args: &PlanArgs, dir: &str) -> RunResult {
    let name = args.path.as_deref().or(args.model.model.as_deref());
    let config = name.and_then(builtin_config).ok_or_else(|| {
        RunError::usage("`write_config` needs the name of a built-in configuration").hint(format!(
            "one of {}",
            builtin_names().collect::<Vec<_>>().join(", ")
        ))
    })?;
    let dir = Path::new(dir);
    let text = format!("{}\n", to_python_json(&config));
    targets::check_config_folder(dir, text.as_bytes())?;
    files::create_dir_all(dir)?;
    Ok(write_atomic(&dir.join("config.json"), text.as_bytes())?)
}

/// A plan, and what is said above it.
struct Shown {
    subject: Subject,
    plan: ModelPlan,
    preset: Option<String>,
}

impl Shown {
    fn make(args: &PlanArgs, unused: Unused) -> RunResult<Self> {
        let mut model = args.model.settings();
        model.model = args.path.clone().or(model.model);
        let subject = Subject::find(&model)?;
        presets::check_family(&args.preset, &subject.config.model_type)?;
        let task = args.task.unwrap_or_else(|| subject.task());
        check_plan(unused, args, task)?;
        let settings = PlanSettings {
            task,
            num_labels: args.num_labels,
            rows: args.per_device_batch_size,
            max_length: args.max_length,
            gradient_checkpointing: args.gradient_checkpointing,
            max_memory: args.memory.max_memory,
            lora: settings::to_map(&args.lora),
            numerics: args.numerics.choices(),
            machine: session::machine()?,
            threads: args.common.threads,
        };
        Ok(Self {
            plan: ModelPlan::make(&subject, &settings)?,
            subject,
            preset: presets::describe(&args.preset)?,
        })
    }

    fn to_json(&self) -> Value {
        let way = |way: &Way| {
            json!({
                "precision": way.numerics.activations,
                "base_format": way.numerics.weights,
                "arithmetic": way.numerics.arithmetic,
                "trainable_parameters": way.trainable,
                "adapter_parameters": way.adapter,
                "head_parameters": way.head,
                "peak_bytes": way.needs.peak.total(),
                "bytes": by_purpose(&way.needs.peak),
                "fixed_bytes": by_purpose(&way.fixed),
                "flops_per_token": way.needs.flops_per_token(),
                "frozen_layers": way.frozen_layers,
                "flops_per_token_with_them_kept": way.with_frozen_kept.as_ref().map(Needs::flops_per_token),
            })
        };
        json!({
            "preset": self.preset,
            "model_type": self.subject.config.model_type,
            "rows": self.plan.rows,
            "tokens_per_row": self.plan.length,
            "total_parameters": self.plan.base_parameters,
            "encoder_parameters": self.plan.encoder_parameters,
            "prefix_cache_bytes_per_token": self.plan.kept_bytes,
            "choices": self.plan.choices.as_ref().map(choices::to_json),
            "gradient_checkpointing": self.plan.recompute == Recompute::Layers,
            "lora": way(&self.plan.lora),
            "full": way(&self.plan.full),
            "forward_flops_per_token": self.plan.forward_flops,
            "adapter_file_bytes": self.plan.adapter_file,
            "adapter_bytes_in_16_bits": 2 * self.plan.lora.trainable,
            "trainable_parameters_full_over_lora": self.plan.reduction(),
            "other_methods": self.plan.other_methods().into_iter().map(|(k, v)| (k, json!(v))).collect::<serde_json::Map<_, _>>(),
        })
    }

    fn to_text(&self) -> String {
        let (plan, c) = (&self.plan, &self.subject.config);
        let mut text = format!(
            "{}: {} layers, width {}, {} heads; {} parameters with its head, {} in the encoder\n\
             a batch of {} rows of {} tokens; LoRA rank {}, alpha {}\n\n",
            c.model_type,
            c.facts.num_hidden_layers,
            c.facts.hidden_size,
            c.facts.num_attention_heads,
            count(plan.base_parameters),
            count(plan.encoder_parameters),
            count(plan.rows as u64),
            plan.length,
            plan.lora_settings.r,
            plan.lora_settings.lora_alpha,
        );
        if let Some(preset) = &self.preset {
            text = format!("{preset}\n\n{text}");
        }
        text.push_str(&self.table().to_string());
        text.push_str(&format!(
            "\nforward alone: {:.1} MFLOP a token\n",
            plan.forward_flops / 1e6
        ));
        text.push_str(&self.others_text());
        if let Some(choices) = &plan.choices {
            text.push_str(&format!("\n{}", choices::to_text(choices)));
        }
        text
    }

    /// LoRA beside full fine-tuning.
    fn table(&self) -> TextTable {
        let plan = &self.plan;
        let (lora, full) = (&plan.lora, &plan.full);
        let total = plan.base_parameters + lora.adapter;
        let mut table = TextTable::new(&[
            "",
            &format!("LoRA, {}", lora.numerics),
            &format!("full fine-tuning, {}", full.numerics),
        ]);
        table
            .row([
                "trained parameters",
                &count(lora.trainable),
                &count(full.trainable),
            ])
            .row(["  of them in adapters", &count(lora.adapter), "-"])
            .row([
                "  of them in the head",
                &count(lora.head),
                &count(full.head),
            ])
            .row([
                "share of all",
                &percent(lora.trainable, total),
                &percent(full.trainable, plan.base_parameters),
            ]);
        for purpose in Purpose::of_training() {
            table.row([
                purpose.name().replace('_', " "),
                bytes(lora.needs.peak.of(purpose)),
                bytes(full.needs.peak.of(purpose)),
            ]);
        }
        let flops = |needs: &Needs| format!("{:.1} MFLOP", needs.flops_per_token() / 1e6);
        table
            .row([
                "peak of all tensors",
                &bytes(lora.needs.peak.total()),
                &bytes(full.needs.peak.total()),
            ])
            .row([
                "training, a token",
                &flops(&lora.needs),
                &flops(&full.needs),
            ]);
        if let (layers @ 1.., kept) = (lora.frozen_layers, &lora.with_frozen_kept) {
            let shown = match kept {
                None => "computed anew: their dropout is on".to_owned(),
                Some(_) => format!("{} a token if kept", bytes(plan.kept_bytes)),
            };
            let name = format!("frozen layers below: {layers}");
            table.row([name, shown, "-".to_owned()]);
            if let Some(needs) = kept {
                let name = "  training with them kept, a token";
                table.row([name, &flops(needs), "-"]);
            }
        }
        self.add_files(&mut table);
        table
    }

    /// What the results take.
    fn add_files(&self, table: &mut TextTable) {
        let plan = &self.plan;
        let (lora, full) = (&plan.lora, &plan.full);
        table
            .row([
                "file of the result",
                &bytes(plan.adapter_file),
                &bytes(4 * full.trainable),
            ])
            .row([
                "the same in 16 bits",
                &bytes(2 * lora.trainable),
                &bytes(2 * full.trainable),
            ])
            .row([
                "fewer trained parameters".to_owned(),
                format!("{} times", count(plan.reduction() as u64)),
                "-".to_owned(),
            ]);
    }

    fn others_text(&self) -> String {
        let mut others = TextTable::new(&["other methods, besides a head", "trained"]);
        others.row([
            "full fine-tuning of the encoder".to_owned(),
            count(self.plan.encoder_parameters),
        ]);
        for (name, n) in self.plan.other_methods() {
            others.row([name.replace('_', " "), count(n)]);
        }
        format!("\n{others}")
    }
}

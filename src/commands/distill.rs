//! `attar distill`: a student learns from its teacher, is written, reopened and scored.

mod cut;
mod lesson;
mod school;

use std::path::{Path, PathBuf};

use attar_checkpoint::tokenizer::Tokenizer;
use attar_distill::LayerMap;
use attar_eval::Convention;
use attar_model::teacher::Signal;
use attar_model::{ModelConfig, Precision, Role, Weights};
use ndarray::ArrayD;

use crate::cli::{DistillArgs, Global};
use crate::commands::ScoringRequest;
use crate::commands::quantize::check_weights;
use crate::data;
use crate::device::Computer;
use crate::diagnostic::{Explain, Failure, Result};
use crate::pipeline::pupil::{self, Desk};
use crate::pipeline::teacher::Original;
use crate::pipeline::training::{Data, Kept};
use crate::pipeline::{Clock, describe, refuse_quantized};
use crate::plan::{CalibrationSize, LocalMemory, Teaching, TrainingMemory, TrainingSize};
use crate::source::Source;
use crate::talk::{Talk, say, thousands};
use cut::Cutting;
use lesson::{Lesson, Manner};
pub use school::{Pair, School};

/// What is said of a teacher whose tokens are others.
const SAME_TOKENS: &str = "a student learns from a teacher with the same tokenizer only";

/// What the report calls how floats were made.
pub const METHOD: &str = "distill";

/// Tokens per window where the user names none, unless a model was made for less.
const CTX: usize = 512;

/// Plans, checks, teaches, writes, reopens, scores, reports; where the student is to be cut out of its teacher, that first.
///
/// # Errors
/// Whatever kept it from being done; what can be found out early is.
pub fn run(args: &DistillArgs, global: &Global) -> Result<()> {
    let original = Original::open(&args.teacher)?;
    match (args.cut(&original)?, &original) {
        (Some(cut), Original::Model(teacher)) => {
            let cutting = Cutting::open(&cut, teacher, args.resume, global)?;
            run_cut(args, &original, &cutting, global)
        }
        _ => run_given(args, &original, global),
    }
}

/// With a student that is there.
fn run_given(args: &DistillArgs, original: &Original, global: &Global) -> Result<()> {
    let Some(student) = &args.student else { unreachable!("there is a student or one is cut") };
    let student = Source::open(student)?;
    refuse_quantized(&student)?;
    let tokenizer = student.tokenizer()?;
    let computer = global.computer(&shapes(&student, original))?;
    let pair = Pair { original, student: &student, tokenizer: &tokenizer };
    let school = School::open(args, pair, computer, global)?;
    if global.dry_run {
        return say(&format!("{}\n", school.plan(&student)?));
    }
    let kept = school.check(&student)?;
    let scoring = school.scoring(&student, global)?;
    let mut clock = Clock::default();
    clock.time("check", || check_weights(&student, global.talk()))?;
    let (written, report) = school.run(&student, kept, &mut clock)?;
    school.deliver(&written, report, scoring.as_ref(), clock, global)?;
    school.close()
}

/// With a student that is cut first, or was when the run was begun.
fn run_cut(args: &DistillArgs, original: &Original, cutting: &Cutting<'_>, global: &Global) -> Result<()> {
    // A run that ended before the student's first steps were kept goes on with the student.
    let resume = args.resume && (!cutting.is_kept() || Kept::is_at(&state_of(&args.output)));
    let args = &DistillArgs { resume, ..args.clone() };
    let plan = cutting.plan()?;
    let planned = cutting.student(&plan)?;
    let computer = global.computer(&shapes(&planned, original))?;
    let open = |student: &Source| {
        let pair = Pair { original, student, tokenizer: cutting.tokenizer() };
        School::open(args, pair, computer.clone(), global)
    };
    let school = open(&planned)?;
    if global.dry_run {
        return say(&format!("{plan}\n\n{}\n", school.plan(&planned)?));
    }
    let kept = school.check(&planned)?;
    cutting.check(&plan)?;
    let scoring = school.scoring(&planned, global)?;
    let mut clock = Clock::default();
    if let Original::Model(teacher) = original {
        clock.time("check", || check_weights(teacher, global.talk()))?;
    }
    let (student, facts) = cutting.run(&mut clock)?;
    // Which of several shapes is left is known only now.
    let known = student.config == planned.config && !args.reads_student();
    let school = if known { school } else { open(&student)? };
    let (written, mut report) = school.run(&student, kept, &mut clock)?;
    facts.tell(&mut report);
    if let Original::Model(teacher) = original {
        report.model = describe(teacher);
    }
    school.deliver(&written, report, scoring.as_ref(), clock, global)?;
    school.close()?;
    cutting.close()
}

/// The shapes of the models that learn and teach.
pub fn shapes<'a>(student: &'a Source, original: &'a Original) -> Vec<&'a ModelConfig> {
    let teacher = match original {
        Original::Model(teacher) => Some(&teacher.config),
        Original::Cache(_) => None,
    };
    [&student.config].into_iter().chain(teacher).collect()
}

/// The folder a run is kept in on the way to `output`.
pub fn state_of(output: &Path) -> PathBuf {
    let mut name = output.file_name().unwrap_or_default().to_owned();
    name.push(".training");
    output.with_file_name(name)
}

/// The teacher's layers that a student was made of, where it was made by leaving layers out and has learned nothing since: its layers'
/// first norms are then still the teacher's to the bit. None where they are not, or do not tell the teacher's layers apart.
fn kept_layers(student: &Source, teacher: &Source) -> Option<Vec<usize>> {
    let norms = |source: &Source| {
        let tensors = source.config.tensors();
        let norms = tensors.iter().filter(|spec| spec.role == Role::AttnNorm && spec.layer.is_some());
        norms.map(|spec| source.load(&spec.name).ok()).collect::<Option<Vec<_>>>()
    };
    let (own, of_teacher) = (norms(student)?, norms(teacher)?);
    let place = |norm: &ArrayD<f32>| {
        let mut places = (0..of_teacher.len()).filter(|&layer| of_teacher[layer] == *norm);
        places.next().filter(|_| places.next().is_none())
    };
    let kept = own.iter().map(place).collect::<Option<Vec<_>>>()?;
    (!kept.is_empty() && kept.is_sorted_by(|a, b| a < b)).then_some(kept)
}

impl DistillArgs {
    /// Holds what was asked for to the teacher and the student.
    fn check(&self, original: &Original, student: &Source) -> Result<()> {
        if !student.config.layer_sizes.is_empty() {
            return Err(Failure::new(
                "the layers of the student differ in size, and a run is kept in a folder, whose config.json cannot say that",
            )
            .hint("teach what attar prune --across-layers writes without --arch deci: its zeros stay zeros"));
        }
        let teacher = match original {
            Original::Model(teacher) => teacher.config.vocab_size,
            Original::Cache(cache) => cache.facts().vocab_size,
        };
        if teacher != student.config.vocab_size {
            return Err(Failure::new(format!(
                "the teacher knows {} tokens, the student {}",
                thousands(teacher as u64),
                thousands(student.config.vocab_size as u64)
            ))
            .hint(SAME_TOKENS));
        }
        match original {
            Original::Model(_) if self.data.is_empty() => {
                Err(Failure::new("there is nothing to learn from").hint("give text with --data FILE"))
            }
            Original::Cache(_) if !self.data.is_empty() => {
                Err(Failure::new("a teacher cache is of a text of its own, and --data names another")
                    .hint("leave --data out, or give the teacher itself"))
            }
            Original::Cache(_) if self.ctx.is_some() => {
                Err(Failure::new("a teacher cache has windows of its own length").hint("leave --ctx out"))
            }
            Original::Cache(cache) if cache.head().is_none() && (self.temperature - 1.0).abs() > 0.0 => {
                Err(Failure::new("of the likeliest tokens alone nobody knows what another temperature makes")
                    .hint("leave --temperature out, or keep hidden states: --save-as hidden-bf16"))
            }
            _ => Ok(()),
        }
    }

    /// Whether the student's numbers decide on how it is taught, and not its shape alone.
    pub fn reads_student(&self) -> bool {
        (self.local || self.hidden_loss.is_some()) && self.layer_map.is_none()
    }

    /// Which layer of the teacher each of the student is held to, if any is: as the user has it, or all, as the student was made of
    /// the teacher or else evenly spread.
    fn layers(&self, original: &Original, student: &Source) -> Result<Option<LayerMap>> {
        if !self.local && self.hidden_loss.is_none() {
            return Ok(None);
        }
        let at = || "while comparing layers of student and teacher";
        let Original::Model(teacher) = original else {
            return Err(Failure::from(attar_distill::Error::KeptWithoutStreams)
                .hint("give the teacher itself in place of its cache"))
            .doing(at);
        };
        let [of_student, of_teacher] = [&student.config, &teacher.config];
        let layers = of_teacher.num_hidden_layers;
        let map = self.layer_map.clone().unwrap_or_else(|| match kept_layers(student, teacher) {
            Some(kept) => LayerMap::of_kept(&kept, layers),
            None => LayerMap::even(of_student.num_hidden_layers, layers),
        });
        map.check(of_student, of_teacher).doing(at).hint(|| {
            "--layer-map names layers of both, and both need one hidden size; predictions alone can be learned by any student"
        })?;
        if !self.local {
            return Ok(Some(map));
        }
        if !map.rises() {
            return Err(Failure::new("layers that learn one after another follow layers that rise too")
                .hint(
                    "let the teacher's numbers rise in --layer-map, or use --hidden-loss in place of --local",
                ))
            .doing(at);
        }
        match map.pairs().iter().find(|(layer, _)| of_student.experts_of(*layer).is_some()) {
            Some(&(layer, _)) => Err(Failure::from(attar_model::Error::NoBackward { layer })
                .hint("leave layers with experts out of --layer-map"))
            .doing(at),
            None => Ok(Some(map)),
        }
    }

    /// How the student is taught: on a device, layer by layer, or whole.
    fn manner(
        &self,
        (desk, map): (Option<Desk>, Option<LayerMap>),
        (student, original): (&Source, &Original),
        work: (&Data, &Lesson),
        max_memory: Option<u64>,
    ) -> Result<Manner> {
        match (desk, map, original) {
            (Some(desk), ..) => Ok(Manner::There(desk)),
            (None, Some(map), Original::Model(teacher)) if self.local => {
                self.layer_by_layer(map, [&student.config, &teacher.config], work, max_memory)
            }
            _ => self.whole((&student.config, original), work, max_memory).map(Manner::Whole),
        }
    }

    /// What a student needs that learns as a whole.
    fn whole(
        &self,
        (student, original): (&ModelConfig, &Original),
        (data, lesson): (&Data, &Lesson),
        max_memory: Option<u64>,
    ) -> Result<TrainingMemory> {
        let (teaching, teacher) = match original {
            Original::Model(teacher) => (Teaching::Online(&teacher.config), Some(&teacher.config)),
            Original::Cache(cache) => match cache.facts().signal {
                Signal::TopK(count) => (Teaching::Likeliest(count), None),
                _ => (Teaching::Hidden(cache.facts().hidden_size), None),
            },
        };
        let (ctx, streams) = (data.windows.ctx(), lesson.aim.streams.as_ref());
        let size = TrainingSize {
            student,
            teaching,
            batch: self.batch.into(),
            ctx,
            data_tokens: data.windows.tokens().len(),
            streams: streams.map_or(0, |streams| streams.map.pairs().len()),
            precision: self.precision.into(),
            masters: self.scheme.is_some().into(),
        };
        let refused = match TrainingMemory::within(size, max_memory) {
            Ok(memory) => return Ok(memory),
            Err(refused) => refused,
        };
        // Layer by layer it may fit.
        let teacher =
            teacher.filter(|teacher| self.scheme.is_none() && teacher.hidden_size == student.hidden_size);
        let local = teacher.and_then(|teacher| {
            let size = CalibrationSize { tokens: data.windows.tokens().len(), ctx };
            LocalMemory::within([student, teacher], size, max_memory).ok()
        });
        match local {
            Some(_) => Err(refused.and_hint("--local, one layer after another, fits")),
            None => Err(refused),
        }
    }

    /// What a student needs whose layers learn one after another.
    fn layer_by_layer(
        &self,
        map: LayerMap,
        configs: [&ModelConfig; 2],
        (data, lesson): (&Data, &Lesson),
        max_memory: Option<u64>,
    ) -> Result<Manner> {
        let ctx = data.windows.ctx();
        let seen = data.seen(self.batch.into(), self.seed, lesson.optimizer.schedule.steps);
        let size = CalibrationSize { tokens: seen.len() * ctx, ctx };
        let memory = LocalMemory::within(configs, size, max_memory)?;
        Ok(Manner::Layers { map, seen, memory })
    }

    fn data(&self, original: &Original, student: &Source, tokenizer: &Tokenizer, talk: Talk) -> Result<Data> {
        if let Original::Cache(cache) = original {
            return data::of_cache(cache.windows(), cache.path(), self.held_out);
        }
        let ctx = self.ctx.unwrap_or(CTX.min(student.config.max_position_embeddings)).max(2);
        let end = student.config.eos_token_ids.first().copied();
        data::read(&self.data, tokenizer, end, ctx, self.held_out, talk)
    }

    fn scoring<'a>(
        &'a self,
        original: &Original,
        computer: &'a Computer,
        global: &Global,
    ) -> ScoringRequest<'a> {
        ScoringRequest {
            file: self.text.as_ref(),
            ctx: self.ctx,
            chunks: self.chunks,
            convention: Convention::LlamaCpp,
            precision: Precision::F32,
            as_in: None,
            models: 1 + usize::from(matches!(original, Original::Model(_))),
            max_memory: global.max_memory,
            computer,
        }
    }

    /// Where the student learns if that is a CUDA device; what computes all else.
    fn desk(&self, pair: Pair<'_, '_>, data: &Data, computer: Computer) -> Result<(Computer, Option<Desk>)> {
        let sizes = (usize::from(self.batch), data.windows.ctx());
        let course = if self.scheme.is_some() {
            Err(Failure::new("a student sees its weights as they are stored on the processor only")
                .hint("leave --device out, or --scheme, and quantize what was taught"))
        } else if self.local || self.hidden_loss.is_some() {
            Err(Failure::from(attar_distill::Error::StreamsOnDevice)
                .hint("leave --device out, or --local and --hidden-loss, and learn from predictions alone"))
        } else {
            pupil::course(pair.student, pair.original, sizes, self.precision.into())
        };
        match course {
            Ok(course) => {
                let desk = computer.desk(course)?;
                Ok((computer, desk))
            }
            Err(reason) => Ok((computer.without_device(reason)?, None)),
        }
    }
}

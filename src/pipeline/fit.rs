//! A GGUF file of a given size: types are measured, chosen, and given to the plan.

use std::collections::BTreeMap;

use attar_checkpoint::{Dtype, GgmlType};
use attar_eval::report;
use attar_model::Role;
use attar_quant::{Choice, allocate, encoding};

use super::Job;
use super::allocate::{Candidate, Group, Measuring};
use crate::diagnostic::{Explain, Failure, Result};
use crate::mix::{FILE_TYPES, Fallback, FileType, shape_fallback};
use crate::plan::{Exact, Plan, TypeRules, float_dtype};
use crate::scheme::Scheme;
use crate::source::of_most;
use crate::talk::human_bytes;

/// Types that are chosen only where they are asked for by name: of one or two bits without much to choose, or for hardware of their own.
const BY_NAME: [GgmlType; 8] = [
    GgmlType::Iq1S,
    GgmlType::Iq1M,
    GgmlType::Tq1_0,
    GgmlType::Tq2_0,
    GgmlType::Q1_0,
    GgmlType::Q2_0,
    GgmlType::Mxfp4,
    GgmlType::Nvfp4,
];

/// Bytes that the data of a tensor in a GGUF file are a multiple of.
const ALIGNMENT: u64 = 32;

/// Sizes of the curve.
const CURVE_POINTS: usize = 12;

/// How large the file may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Most {
    /// Bytes of the whole file.
    Bytes(u64),
    /// Bits for each weight, on average over all tensors.
    BitsPerWeight(f64),
}

/// What is wanted of a file whose types are to be chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Goal {
    /// How large it may be.
    pub most: Most,
    /// The types that may be chosen; none named, all but those that need care.
    pub allow: Vec<GgmlType>,
}

/// What was chosen.
pub struct Fitted {
    /// The file type whose main type most weights have.
    pub file_type: FileType,
    /// The rules by which every tensor gets its type.
    pub rules: TypeRules,
    /// What the report says of it.
    pub report: report::Allocation,
}

impl Fitted {
    /// The work with what was chosen.
    pub fn applied_to<'a>(&'a self, job: &Job<'a>) -> Job<'a> {
        Job { scheme: Some(Scheme::Gguf(self.file_type)), rules: &self.rules, ..*job }
    }
}

impl Goal {
    /// The scheme that stands for it until types are chosen.
    ///
    /// # Panics
    /// Never: the table of file types has it.
    pub fn stand_in() -> Scheme {
        let file_type = FILE_TYPES.iter().find(|file_type| file_type.default_type == GgmlType::Q8_0);
        Scheme::Gguf(*file_type.unwrap_or(&FILE_TYPES[0]))
    }

    /// The goal as words have it.
    ///
    /// # Errors
    /// Both a size and bits, a type that attar does not write.
    pub fn of(target_size: Option<u64>, target_bpw: Option<f64>, allow: &[GgmlType]) -> Result<Option<Self>> {
        let most = match (target_size, target_bpw) {
            (None, None) if allow.is_empty() => return Ok(None),
            (None, None) => {
                return Err(Failure::new(
                    "the types that are allowed are chosen from for a target, and there is none",
                )
                .hint("say how large the file may be: --target-size 4.2GB or --target-bpw 4.5; in a recipe target_size, target_bpw"));
            }
            (Some(_), Some(_)) => {
                return Err(
                    Failure::new("a file has one target").hint("leave --target-size or --target-bpw out")
                );
            }
            (Some(bytes), None) => Most::Bytes(bytes),
            (None, Some(bits)) => Most::BitsPerWeight(bits),
        };
        Ok(Some(Self { most, allow: allow.to_vec() }))
    }

    /// Its name in place of a scheme's.
    pub fn name(&self) -> String {
        match self.most {
            Most::Bytes(bytes) => human_bytes(bytes).replace(' ', ""),
            Most::BitsPerWeight(bits) => format!("{bits}bpw"),
        }
    }

    /// The types that a matrix may get, the one of fewest bits first.
    fn types(&self, float: Dtype) -> Vec<GgmlType> {
        let mut types: Vec<_> = if self.allow.is_empty() {
            let is_block = |t: &GgmlType| t.block_len() > 1 && encoding(t.name()).is_some();
            let blocks = GgmlType::all().filter(|t| is_block(t) && !BY_NAME.contains(t));
            let float = if float == Dtype::Bf16 { GgmlType::Bf16 } else { GgmlType::F16 };
            blocks.chain([float]).collect()
        } else {
            self.allow.clone()
        };
        types.sort_by(|a, b| a.bits_per_weight().total_cmp(&b.bits_per_weight()));
        types.dedup();
        types
    }
}

impl Job<'_> {
    /// Measures what types do to each tensor of the file, and chooses.
    ///
    /// # Errors
    /// An output that is no GGUF file, a target that no types come to, a model that cannot be run.
    pub fn fit(&self, goal: &Goal) -> Result<Fitted> {
        let at = || format!("while choosing types for {}", goal.name());
        self.fit_inner(goal).doing(at)
    }

    /// What a plan says of it before the model can be measured.
    ///
    /// # Errors
    /// An output that is no GGUF file, a target that no types come to.
    pub fn promise_fit(&self, goal: &Goal) -> Result<String> {
        let rules = self.check_fit()?;
        let stand_in = Job { scheme: Some(Goal::stand_in()), rules: &rules, ..*self };
        let plan = stand_in.plan()?;
        let groups = groups(goal, &rules, self)?;
        Sizes::new(&stand_in, &plan, &groups)?.check(&groups, goal)?;
        let count = groups.iter().filter(|group| group.candidates.len() > 1).count();
        Ok(format!(
            "{}: types of {count} tensors are chosen by measured damage once the model is there\n",
            goal.name()
        ))
    }

    /// The rules without what is no matter where types are chosen: what does not fit a row is no candidate there.
    fn check_fit(&self) -> Result<TypeRules> {
        if !super::is_gguf(self.output) {
            return Err(Failure::new("a folder of safetensors has no types to choose among")
                .hint("let the output's name end in .gguf"));
        }
        Ok(TypeRules { no_fallback: false, exact: None, ..self.rules.clone() })
    }

    fn fit_inner(&self, goal: &Goal) -> Result<Fitted> {
        let rules = self.check_fit()?;
        let Some(calibration) = self.calibration else {
            return Err(Failure::new("damage is measured on a text, and there is none"));
        };
        let stand_in = Job { scheme: Some(Goal::stand_in()), rules: &rules, ..*self };
        let plan = stand_in.plan()?;
        let mut groups = groups(goal, &rules, self)?;
        let sizes = Sizes::new(&stand_in, &plan, &groups)?;
        sizes.check(&groups, goal)?;
        Measuring {
            source: self.source,
            plan: &plan,
            windows: &calibration.windows,
            solver: self.solver(),
            precision: self.precision,
            talk: self.talk,
        }
        .run(&mut groups)?;
        let chosen = sizes.choose(&groups, goal.most).ok_or_else(|| Failure::new("nothing fits"))?;
        let types =
            groups.iter().zip(&chosen).map(|(group, at)| (group.name.to_owned(), group.candidates[*at].ggml));
        let exact = Exact { types: types.collect(), name: goal.name() };
        Ok(Fitted {
            file_type: file_type(&groups, &chosen),
            report: sizes.report(&groups, &chosen, goal),
            rules: TypeRules { exact: Some(exact), ..self.rules.clone() },
        })
    }
}

/// The tensors of the file that become codes, and what each may become.
fn groups<'a>(goal: &Goal, rules: &TypeRules, job: &Job<'a>) -> Result<Vec<Group<'a>>> {
    let (source, mut groups) = (job.source, BTreeMap::<&'a str, Group<'a>>::new());
    let is_free = |spec: &attar_model::TensorSpec| spec.is_matrix() && spec.role != Role::Router;
    for spec in source.specs.iter().filter(|spec| is_free(spec)) {
        let name = spec.gguf_name.as_str();
        groups
            .entry(name)
            .or_insert_with(|| Group { name, specs: Vec::new(), candidates: Vec::new() })
            .specs
            .push(spec);
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    for group in &mut groups {
        let spec = group.specs[0];
        let row_length = spec.shape[1];
        let types = match rules.asked(spec, source.config.tie_word_embeddings)? {
            Some(asked) => vec![shape_fallback(asked, row_length, rules.fallback)],
            None => goal.types(source.float_dtype(spec)),
        };
        let fits = |ggml: &GgmlType| row_length.is_multiple_of(ggml.block_len());
        let mut fitting: Vec<_> = types.iter().copied().filter(fits).collect();
        if fitting.is_empty() {
            let smallest = types.first().copied().unwrap_or(GgmlType::F16);
            fitting.push(shape_fallback(smallest, row_length, Fallback::Fitting));
        }
        let rows: usize = group.specs.iter().map(|spec| spec.shape[0]).sum();
        group.candidates = fitting.into_iter().map(|ggml| candidate(ggml, rows, row_length)).collect();
    }
    Ok(groups)
}

fn candidate(ggml: GgmlType, rows: usize, row_length: usize) -> Candidate {
    let bytes = (rows * row_length / ggml.block_len() * ggml.block_bytes()) as u64;
    Candidate { ggml, bytes, damage: 0.0 }
}

/// What takes room in a file whatever types are chosen.
struct Sizes {
    /// The header, vectors, and what else is no group's: in a file.
    around: u64,
    /// The same without a header, and no tensor padded: in a sum of weights.
    beside: u64,
    weights: u64,
}

impl Sizes {
    fn new(job: &Job<'_>, plan: &Plan, groups: &[Group<'_>]) -> Result<Self> {
        let of_groups: BTreeMap<&str, u64> = plan.tensors.iter().fold(BTreeMap::new(), |mut all, tensor| {
            *all.entry(tensor.spec.gguf_name.as_str()).or_default() += tensor.bytes;
            all
        });
        let now = |group: &Group<'_>| of_groups.get(group.name).copied().unwrap_or(0);
        let file = job.target(plan).file_bytes()?;
        Ok(Self {
            around: file - groups.iter().map(|group| padded(now(group))).sum::<u64>(),
            beside: plan.bytes() - groups.iter().map(now).sum::<u64>(),
            weights: plan.weights(),
        })
    }

    /// Bytes that a candidate counts, of those that the target gives; and what is left for all.
    fn room(&self, most: Most) -> (fn(u64) -> u64, u64) {
        match most {
            Most::Bytes(bytes) => (padded, bytes.saturating_sub(self.around)),
            Most::BitsPerWeight(bits) => {
                let bytes = (bits * self.weights as f64 / 8.0 * (1.0 + 1e-12)) as u64;
                (|bytes| bytes, bytes.saturating_sub(self.beside))
            }
        }
    }

    /// Refuses a target that even the smallest types pass, before anything is measured.
    fn check(&self, groups: &[Group<'_>], goal: &Goal) -> Result<()> {
        let least =
            |group: &Group<'_>| (0..group.candidates.len()).min_by_key(|at| group.candidates[*at].bytes);
        let smallest: Vec<_> = groups.iter().filter_map(least).collect();
        let (counts, room) = self.room(goal.most);
        let taken: u64 =
            groups.iter().zip(&smallest).map(|(group, at)| counts(group.candidates[*at].bytes)).sum();
        let (file, bits) = (self.file_bytes(groups, &smallest), self.bits(groups, &smallest));
        if taken <= room && room > 0 {
            return Ok(());
        }
        let least = match goal.most {
            Most::Bytes(_) => format!("--target-size {file}"),
            Most::BitsPerWeight(_) => format!("--target-bpw {:.3}", (bits * 1000.0).ceil() / 1000.0),
        };
        let more = if goal.allow.is_empty() {
            "; iq1_s and other types of less than two bits have to be allowed by name, with --allow"
        } else {
            "; or allow smaller types"
        };
        let what = format!(
            "with the smallest types the file takes {} at {bits:.3} bits per weight",
            human_bytes(file)
        );
        Err(Failure::new(what).hint(format!("the least is {least}{more}")))
    }

    fn choose(&self, groups: &[Group<'_>], most: Most) -> Option<Vec<usize>> {
        let (counts, room) = self.room(most);
        let choice =
            |candidate: &Candidate| Choice { bytes: counts(candidate.bytes), damage: candidate.damage };
        let choices: Vec<Vec<_>> =
            groups.iter().map(|group| group.candidates.iter().map(choice).collect()).collect();
        allocate(&choices, room).map(|allocation| allocation.chosen)
    }

    fn file_bytes(&self, groups: &[Group<'_>], chosen: &[usize]) -> u64 {
        self.around
            + groups.iter().zip(chosen).map(|(group, at)| padded(group.candidates[*at].bytes)).sum::<u64>()
    }

    fn bits(&self, groups: &[Group<'_>], chosen: &[usize]) -> f64 {
        let bytes: u64 = groups.iter().zip(chosen).map(|(group, at)| group.candidates[*at].bytes).sum();
        8.0 * (self.beside + bytes) as f64 / self.weights as f64
    }

    fn report(&self, groups: &[Group<'_>], chosen: &[usize], goal: &Goal) -> report::Allocation {
        let taken = || groups.iter().zip(chosen).map(|(group, at)| (group, group.candidates[*at]));
        let point = |chosen: &[usize]| report::SizePoint {
            bytes: self.file_bytes(groups, chosen),
            bits_per_weight: self.bits(groups, chosen),
            predicted_kl: groups.iter().zip(chosen).map(|(group, at)| group.candidates[*at].damage).sum(),
        };
        let (target_bytes, target_bits_per_weight) = match goal.most {
            Most::Bytes(bytes) => (Some(bytes), None),
            Most::BitsPerWeight(bits) => (None, Some(bits)),
        };
        let mut tensors: Vec<_> = taken()
            .map(|(group, candidate)| report::Allocated {
                name: group.name.to_owned(),
                encoding: candidate.ggml.name().to_owned(),
                predicted_kl: candidate.damage,
            })
            .collect();
        tensors.sort_by(|a, b| b.predicted_kl.total_cmp(&a.predicted_kl));
        let allowed = goal.allow.iter().map(|ggml| ggml.name().to_owned()).collect();
        let curve = self.curve_bits(groups).filter_map(|bits| self.choose(groups, Most::BitsPerWeight(bits)));
        let mut curve: Vec<_> = curve.map(|chosen| point(&chosen)).collect();
        curve.dedup_by_key(|point| point.bytes);
        report::Allocation {
            target_bytes,
            target_bits_per_weight,
            allowed,
            chosen: point(chosen),
            tensors,
            curve,
        }
    }

    /// Sizes from the smallest file to the largest below floats, each by the same factor larger than that before.
    fn curve_bits(&self, groups: &[Group<'_>]) -> impl Iterator<Item = f64> {
        let ends = |group: &Group<'_>| {
            let quantized = |at: &usize| float_dtype(group.candidates[*at].ggml).is_none();
            let by_bytes = |at: &usize| group.candidates[*at].bytes;
            let least = (0..group.candidates.len()).min_by_key(by_bytes).unwrap_or(0);
            [least, (0..group.candidates.len()).filter(quantized).max_by_key(by_bytes).unwrap_or(least)]
        };
        let ends: Vec<_> = groups.iter().map(ends).collect();
        let [least, most] =
            [0, 1].map(|end| self.bits(groups, &ends.iter().map(|ends| ends[end]).collect::<Vec<_>>()));
        let factor = (most / least).powf(1.0 / (CURVE_POINTS - 1) as f64);
        (0..CURVE_POINTS).map(move |at| least * factor.powi(at as i32) * (1.0 + 1e-9))
    }
}

fn padded(bytes: u64) -> u64 {
    bytes.next_multiple_of(ALIGNMENT)
}

/// The file type whose main type most weights have.
fn file_type(groups: &[Group<'_>], chosen: &[usize]) -> FileType {
    let taken = groups.iter().zip(chosen);
    let main = of_most(taken.map(|(group, at)| (group.candidates[*at].ggml.name(), group.weights())));
    let main = main.unwrap_or("q8_0");
    // Of several file types of a main type the one in the middle: q4_k_m of q4_k.
    let of_it = || FILE_TYPES.iter().filter(|file_type| file_type.default_type.name() == main);
    let medium = of_it().find(|file_type| file_type.name.ends_with("_m"));
    medium.or_else(|| of_it().next()).copied().unwrap_or(FILE_TYPES[0])
}

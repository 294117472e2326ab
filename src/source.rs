//! Any checkpoint attar reads, as the weights a model asks for by their Hugging Face names.

mod error;
mod stored;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use attar_checkpoint::quantization::described;
use attar_checkpoint::tokenizer::Tokenizer;
use attar_checkpoint::{Container, Dtype, TensorInfo, Unwritten, gguf, hf, safetensors};
use attar_model::{FilePlace, ModelConfig, RowOrder, TensorSpec};
use attar_quant::Holds;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::diagnostic::{Explain, Failure, Result};
use crate::hub;
use crate::layout::{Quantization, quantization};
use crate::talk::Talk;
use crate::text::hex;
pub use error::StorageError;
use stored::Stored;

/// Values of a tensor that are worked on together: enough to fill every thread, few enough to stay small.
pub const CHUNK_WEIGHTS: usize = 1 << 21;

/// An opened model: its shape, its bytes, and the way from one to the other.
#[derive(Debug)]
pub struct Source {
    /// Where it was opened.
    pub path: PathBuf,
    /// Shapes and constants of the model.
    pub config: ModelConfig,
    /// Every tensor the model has, in the order of a forward pass.
    pub specs: Vec<TensorSpec>,
    by_name: HashMap<String, usize>,
    stacked: HashMap<String, FilePlace>, // tensors that are rows of larger ones in the file, by Hugging Face name
    opened: Opened,
}

#[derive(Debug)]
enum Opened {
    Folder { files: Box<dyn Container>, folder: hf::Folder, quantization: Option<Box<dyn Quantization>> },
    Gguf(gguf::File),
}

impl Opened {
    /// Where a tensor lies that has not a tensor of its name to itself.
    fn stacked(&self, spec: &TensorSpec) -> Option<FilePlace> {
        match self {
            Self::Gguf(_) => spec.expert.map(|_| spec.gguf_place()),
            Self::Folder { files, .. } => {
                let is_there = |place: &FilePlace| files.info(&place.name).is_some();
                spec.hf_places().into_iter().find(is_there).filter(|place| place.name != spec.name)
            }
        }
    }
}

/// What is said of a configuration that describes no model attar can run.
const WHAT_RUNS: &str = "attar runs the architectures and options it names here, and no others yet; if this model \
     should be one of them, its configuration is damaged: get it again";

/// What is said of numbers that cannot be right.
const DAMAGED: &str =
    "the checkpoint is damaged: download it again, or convert it again from where it was trained";

/// What is said of a model that does not open, where nothing more special is.
const WHAT_A_MODEL_IS: &str = "a model is a Hugging Face folder (config.json, *.safetensors, tokenizer.json) or a .gguf \
     file; if this was one, it is damaged or cut short: download or copy it again";

impl Source {
    /// Opens a Hugging Face folder or a `.gguf` file and checks that every tensor of the model is there.
    ///
    /// # Errors
    /// Files that are missing, damaged or lying; an unknown architecture; a tensor that is missing, has another
    /// shape than the configuration says or a type that cannot be decoded.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_inner(path)
            .hint(|| WHAT_A_MODEL_IS)
            .doing(|| format!("while opening `{}`", path.display()))
    }

    fn open_inner(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Err(Failure::new("there is no such file or folder").hint("check the path for a misprint"));
        }
        let (config, opened) = if path.is_dir() {
            // Of a folder with neither weights nor a config, the missing weights say more.
            let files = safetensors::open(path)?;
            let folder = hf::Folder::open(path)?;
            let config = ModelConfig::from_hf(&folder.config).hint(|| WHAT_RUNS)?;
            let quantization = quantization(&folder.config)?;
            (config, Opened::Folder { files: Box::new(files), folder, quantization })
        } else {
            let file = gguf::File::open(path)?;
            (ModelConfig::from_gguf(&file).hint(|| WHAT_RUNS)?, Opened::Gguf(file))
        };
        Self::of(path, config, opened)
    }

    /// A folder of floats before it is written: what this `config.json` and these tensors will make it. Its numbers cannot be
    /// loaded.
    ///
    /// # Errors
    /// As [`open`](Self::open) of the folder once it is there.
    pub fn unwritten(path: &Path, config: serde_json::Value, tensors: Vec<TensorInfo>) -> Result<Self> {
        let files = Box::new(Unwritten::new(path, tensors)?);
        let folder = hf::Folder { path: path.to_owned(), config, generation_config: None };
        let config = ModelConfig::from_hf(&folder.config)?;
        Self::of(path, config, Opened::Folder { files, folder, quantization: None })
    }

    /// Checks that every tensor of the model is there.
    fn of(path: &Path, config: ModelConfig, opened: Opened) -> Result<Self> {
        let specs = config.tensors();
        let by_name = specs.iter().enumerate().map(|(i, spec)| (spec.name.clone(), i)).collect();
        let stacked =
            specs.iter().filter_map(|spec| Some((spec.name.clone(), opened.stacked(spec)?))).collect();
        let source = Self { path: path.to_owned(), config, specs, by_name, stacked, opened };
        source.specs.iter().try_for_each(|spec| source.check_tensor(spec))?;
        Ok(source)
    }

    fn check_tensor(&self, spec: &TensorSpec) -> Result<()> {
        let stored = self
            .stored(spec)
            .hint(|| "the checkpoint is incomplete or of a kind attar does not read, or its configuration is another model's")?;
        let found = match stored {
            Stored::Floats(info) | Stored::Blocks(info, _) => &info.shape,
            // Its tensors have just been held to its shape, and that to nothing yet.
            Stored::Parts(_, shape) => &shape.to_vec(),
        };
        let (name, expected) = match self.stacked.get(&spec.name) {
            Some(place) => (&place.name, &place.shape),
            None => (&spec.name, &spec.shape),
        };
        if found == expected {
            return Ok(());
        }
        Err(Failure::new(format!("tensor `{name}` has shape {found:?}, the configuration says {expected:?}"))
            .hint("the weights and the configuration belong to different models"))
    }

    fn container(&self) -> &dyn Container {
        match &self.opened {
            Opened::Folder { files, .. } => &**files,
            Opened::Gguf(file) => file,
        }
    }

    /// The name of a tensor in the file, or of the larger one whose rows it is.
    pub fn stored_name<'a>(&'a self, spec: &'a TensorSpec) -> &'a str {
        match (self.stacked.get(&spec.name), &self.opened) {
            (Some(place), _) => &place.name,
            (None, Opened::Folder { .. }) => &spec.name,
            (None, Opened::Gguf(_)) => &spec.gguf_name,
        }
    }

    /// SHA-256 of a tensor's numbers as little-endian f32, in the order of the file.
    ///
    /// # Errors
    /// As [`attar_model::Weights::load`].
    pub fn decoded_sha256(&self, spec: &TensorSpec) -> std::result::Result<String, StorageError> {
        let mut hash = Sha256::new();
        self.look_through(spec, |values| hash_floats(&mut hash, values))?;
        Ok(hex(&hash.finalize()))
    }

    /// SHA-256 that stands for all weights: over the name, type, shape and SHA-256 of the stored bytes of every tensor, in
    /// the order of a forward pass. How a model is cut into files changes nothing, another container does.
    ///
    /// # Errors
    /// A tensor that is missing.
    pub fn sha256(&self, talk: Talk) -> std::result::Result<String, StorageError> {
        // Few enough bytes that the rate is seen to move, enough that telling costs nothing.
        const STEP: usize = 16 << 20;
        // Experts may share a tensor.
        let mut seen = HashSet::new();
        let parts = self.specs.iter().flat_map(|spec| self.stored_parts(spec));
        let parts: Vec<String> = parts.filter(|name| seen.insert(name.clone())).collect();
        let errand = talk.errand("hashing", self.bytes(), "bytes");
        let lines: Vec<String> = parts
            .par_iter()
            .map(|name| {
                let info = self.container().info(name);
                let info = info.ok_or_else(|| StorageError::Missing { name: name.clone() })?;
                let mut hash = Sha256::new();
                for bytes in self.container().bytes(name)?.chunks(STEP) {
                    hash.update(bytes);
                    errand.step(bytes.len() as u64, "");
                }
                self.container().release(name);
                let hash = hex(&hash.finalize());
                Ok(format!("{name} {} {:?} {hash}\n", info.dtype, info.shape))
            })
            .collect::<std::result::Result<_, StorageError>>()?;
        errand.done();
        Ok(hex(&Sha256::digest(lines.concat())))
    }

    /// The file's tensors that hold one of the model's.
    fn stored_parts(&self, spec: &TensorSpec) -> Vec<String> {
        let name = self.stored_name(spec);
        let Ok(Stored::Parts(encoding, [rows, cols])) = self.stored(spec) else {
            return vec![name.to_owned()];
        };
        let parts = encoding.parts(rows, cols);
        parts
            .iter()
            .filter(|part| !matches!(part.holds, Holds::Said(_)))
            .filter_map(|part| part.name(name))
            .collect()
    }

    /// Refuses weights that are NaN or infinite.
    ///
    /// # Errors
    /// The first such tensor, with its count.
    pub fn check_finite(&self, mut looked_at: impl FnMut(&TensorSpec)) -> Result<()> {
        for spec in &self.specs {
            let mut bad = 0;
            self.look_through(spec, |values| {
                bad += values
                    .par_chunks(1 << 16)
                    .map(|part| part.iter().filter(|x| !x.is_finite()).count())
                    .sum::<usize>();
            })
            .doing(|| format!("while reading `{}`", spec.name))
            .hint(|| DAMAGED)?;
            if bad > 0 {
                let (name, total) = (&spec.name, spec.len());
                return Err(Failure::new(format!(
                    "{bad} of the {total} values of `{name}` are NaN or infinite"
                ))
                .hint(DAMAGED));
            }
            looked_at(spec);
        }
        Ok(())
    }

    /// The float type a tensor has, or the smallest that holds what it decodes to.
    pub fn float_dtype(&self, spec: &TensorSpec) -> Dtype {
        match self.stored(spec) {
            Ok(Stored::Floats(info)) => match info.dtype {
                Dtype::F8E4m3 | Dtype::F8E5m2 => Dtype::Bf16,
                Dtype::F64 => Dtype::F32,
                kept => kept,
            },
            _ => Dtype::F32,
        }
    }

    /// The float type of the model's matrices.
    pub fn matrix_dtype(&self) -> Dtype {
        self.specs.iter().find(|spec| spec.tap.is_some()).map_or(Dtype::F32, |spec| self.float_dtype(spec))
    }

    /// The storage type of most weights, for people.
    pub fn main_type(&self) -> String {
        of_most(self.specs.iter().map(|spec| (self.stored_type(spec), spec.len()))).unwrap_or_default()
    }

    /// Whether the numbers are already those of a quantized model.
    pub fn is_quantized(&self) -> bool {
        self.specs.iter().any(|spec| self.has_codes(spec))
    }

    /// What the model is called: the name of its folder, or of its file without the ending.
    pub fn name(&self) -> String {
        let path = self.path.canonicalize().unwrap_or_else(|_| self.path.clone());
        if self.is_gguf() {
            return gguf::split::stem_of(&path);
        }
        if let Some(name) = hub::name_in_cache(&path) {
            return name;
        }
        path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    }

    /// The GGUF file, where the model is one.
    pub fn gguf(&self) -> Option<&gguf::File> {
        match &self.opened {
            Opened::Gguf(file) => Some(file),
            Opened::Folder { .. } => None,
        }
    }

    /// Whether `path` is what the model is read from, or a part of it.
    pub fn is_at(&self, path: &Path) -> bool {
        let Ok(path) = path.canonicalize() else { return false };
        let parts = self.gguf().map_or(&[][..], gguf::File::parts);
        std::iter::once(&self.path).chain(parts).any(|own| own.canonicalize().is_ok_and(|own| own == path))
    }

    /// Whether the model is a GGUF file.
    pub fn is_gguf(&self) -> bool {
        matches!(self.opened, Opened::Gguf(_))
    }

    /// Bytes of all weight tensors as they are stored, scales and zero points included.
    pub fn bytes(&self) -> u64 {
        self.specs.iter().map(|spec| self.stored_bytes(spec)).sum()
    }

    /// Bytes of one tensor as it is stored.
    pub fn stored_bytes(&self, spec: &TensorSpec) -> u64 {
        let [rows, cols] = rows_and_cols(spec);
        match self.stored(spec) {
            Ok(Stored::Floats(info) | Stored::Blocks(info, _)) => {
                info.bytes / self.rows_in_file(spec).1.max(1) as u64 * rows as u64
            }
            Ok(Stored::Parts(encoding, _)) => encoding.bytes_for(rows, cols) as u64,
            Err(_) => 0,
        }
    }

    /// Elements of all weight tensors.
    pub fn parameters(&self) -> u64 {
        self.specs.iter().map(|spec| spec.len() as u64).sum()
    }

    /// The name of a tensor's storage type, for people.
    pub fn stored_type(&self, spec: &TensorSpec) -> String {
        match self.stored(spec) {
            Ok(Stored::Floats(info) | Stored::Blocks(info, _)) => info.dtype.to_string(),
            Ok(Stored::Parts(encoding, _)) => encoding.name().into_owned(),
            Err(_) => "unknown".to_owned(),
        }
    }

    /// The Hugging Face folder, where the model is one.
    pub fn folder(&self) -> Option<&hf::Folder> {
        match &self.opened {
            Opened::Folder { folder, .. } => Some(folder),
            Opened::Gguf(_) => None,
        }
    }

    /// The layout of a folder whose weights are quantized.
    pub fn layout(&self) -> Option<&str> {
        described(&self.folder()?.config)?["quant_method"].as_str().filter(|_| self.is_quantized())
    }

    /// The tokenizer that came with the model.
    ///
    /// # Errors
    /// No tokenizer, one that cannot be read, or one with more tokens than the embedding has rows.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let opened = match &self.opened {
            Opened::Folder { .. } => Tokenizer::from_folder(&self.path),
            Opened::Gguf(file) => Tokenizer::from_gguf(file),
        };
        let tokenizer = opened
            .doing(|| format!("while reading the tokenizer of `{}`", self.path.display()))
            .hint(|| "get the tokenizer's files of the original model again")?
            .limited_to(self.config.vocab_size);
        let (tokens, rows) = (tokenizer.vocab_size(), self.config.vocab_size);
        if tokens > rows {
            return Err(Failure::new(format!(
                "the tokenizer has {tokens} tokens, the embedding {rows} rows"
            ))
            .hint("the tokenizer belongs to another model"));
        }
        Ok(tokenizer)
    }

    /// How the file orders the rows of a tensor.
    pub fn row_order(&self, spec: &TensorSpec) -> RowOrder {
        if self.is_gguf() { spec.row_order } else { RowOrder::AsIs }
    }
}

/// What most weights have: of things and their numbers of weights, which are added up, the one of most.
pub fn of_most<T: Ord>(all: impl IntoIterator<Item = (T, usize)>) -> Option<T> {
    let mut weights = BTreeMap::new();
    for (what, count) in all {
        *weights.entry(what).or_insert(0) += count;
    }
    weights.into_iter().max_by_key(|(_, weights)| *weights).map(|(what, _)| what)
}

/// Rows and columns; a vector is rows of one.
pub fn rows_and_cols(spec: &TensorSpec) -> [usize; 2] {
    [spec.shape[0], spec.shape[1..].iter().product()]
}

/// Adds numbers to a hash as little-endian f32.
pub fn hash_floats(hash: &mut Sha256, values: &[f32]) {
    let mut bytes = [0; 4096];
    for part in values.chunks(bytes.len() / 4) {
        for (to, value) in bytes.as_chunks_mut().0.iter_mut().zip(part) {
            *to = value.to_le_bytes();
        }
        hash.update(&bytes[..part.len() * 4]);
    }
}

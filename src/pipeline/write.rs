//! Where compressed tensors go: a GGUF file or a folder of safetensors, complete under its name or not there at all.

mod parts;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use attar_checkpoint::atomic::{AtomicFolder, Overwrite};
use attar_checkpoint::quantization::CONFIG_KEY;
use attar_checkpoint::tokenizer::Tokenizer;
use attar_checkpoint::{Dtype, GgmlType, TensorInfo, decode_floats, encode_floats, gguf, hf, safetensors};
use attar_model::{ModelConfig, RowOrder};
use attar_quant::{FolderEncoding, Named, Part, Solution};
use ndarray::parallel::prelude::*;
use ndarray::{Axis, CowArray};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use self::parts::Unfinished;
use super::site::{NewFolders, Site, part_paths};
use crate::diagnostic::{Explain, Failure, Result};
use crate::imatrix::Used;
use crate::plan::{Output, Plan, PlannedTensor, Treatment};
use crate::source::{Source, hash_floats, rows_and_cols};
use crate::text::hex;

/// Files of more weights than this are cut into shards.
const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// What llama.cpp calls the format of quantized blocks.
const QUANTIZATION_VERSION: u32 = 2;

/// What stands beside the weights of a Hugging Face folder and is copied as it is.
const COMPANIONS: [&str; 11] = [
    hf::GENERATION_CONFIG,
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
];

/// What is to be written where.
pub struct Target<'a> {
    /// What becomes of every tensor.
    pub plan: &'a Plan,
    /// The model that is read.
    pub source: &'a Source,
    /// The numbers of the model that is written: its own, unless some of it goes.
    pub config: &'a ModelConfig,
    /// Its tokenizer, where it has one.
    pub tokenizer: Option<&'a Tokenizer>,
    /// The file or folder.
    pub path: &'a Path,
    /// Whether one that exists is replaced.
    pub overwrite: Overwrite,
    /// The user's word for `tokenizer.ggml.pre`.
    pub pre_tokenizer: Option<&'a str>,
    /// Bytes of tensors that a GGUF is cut into parts of, where it is.
    pub max_part_bytes: Option<u64>,
}

/// SHA-256 of what a reader gets for each tensor, by Hugging Face name.
pub type Hashes = HashMap<String, String>;

/// An output under construction. Rows of a tensor come in order, in runs that are whole heads where a GGUF reorders rows.
pub struct Sink {
    container: Container,
    path: PathBuf,
    unfinished: HashMap<String, Unfinished>, // matrices that several tensors stand for, by Hugging Face name
    hashes: HashMap<String, Sha256>,         // of the numbers a reader gets, by Hugging Face name
    _made: NewFolders,                       // goes last, when nothing temporary is in them any more
}

/// Whether the output reorders the rows of q and k.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// It does, within each head.
    OfHeads,
    /// It does not.
    AsTheyAre,
}

impl Rows {
    fn order(self, tensor: &PlannedTensor) -> RowOrder {
        match self {
            Self::OfHeads => tensor.spec.row_order,
            Self::AsTheyAre => RowOrder::AsIs,
        }
    }

    /// The runs of rows a tensor must be written in, about `weights` long.
    pub fn step(self, tensor: &PlannedTensor, weights: usize) -> usize {
        let [rows, cols] = rows_and_cols(&tensor.spec);
        let unit = match self.order(tensor) {
            RowOrder::AsIs => match &tensor.treatment {
                Treatment::Codes(Named::Folder(encoding)) => encoding.rows_together(rows).max(1),
                _ => 32,
            },
            RowOrder::RopeInterleaved { heads } => (rows / heads.max(1)).max(1), // heads are reordered as a whole
        };
        (weights / cols.max(1)).max(unit) / unit * unit
    }
}

enum Container {
    Gguf(gguf::Writer),
    Folder { folder: AtomicFolder, writer: safetensors::Writer },
}

impl Target<'_> {
    /// What would keep the output from being written, as far as can be told without writing.
    ///
    /// # Errors
    /// As [`Site::check`]; something the container has no place for, such as an unknown tokenizer.
    pub fn check(&self) -> Result<()> {
        let (parts, bytes) = (self.parts(), self.plan.bytes());
        let is_gguf = matches!(self.plan.output, Output::Gguf { .. });
        let Self { source, path, overwrite, .. } = *self;
        Site { source, path, parts: &parts, is_gguf, overwrite }.check(bytes, || {
            if is_gguf { self.metadata(0).map(|_| ()) } else { self.config_json().map(|_| ()) }
        })
    }

    /// The files of a GGUF as it will be: one, or the parts it is cut into; of a folder that alone.
    pub fn parts(&self) -> Vec<PathBuf> {
        match self.plan.output {
            Output::Gguf { .. } => part_paths(self.path, &self.gguf_tensors(), self.max_part_bytes),
            _ => vec![self.path.to_owned()],
        }
    }

    /// What a reader will find in the folder once it is written: all but the numbers.
    ///
    /// # Errors
    /// An output that is no folder of floats; a configuration that cannot be said.
    pub fn promise(&self) -> Result<Source> {
        let at = || format!("while planning `{}`", self.path.display());
        let refused = match self.plan.output {
            Output::Plain => None,
            Output::Gguf { .. } => Some(
                Failure::new("a GGUF file cannot be worked on further")
                    .hint("name a folder: a name that does not end in .gguf"),
            ),
            Output::Folder { .. } => Some(
                Failure::new("what is quantized cannot be worked on further")
                    .hint("keep floats until the last stage: leave the scheme out"),
            ),
        };
        if let Some(refused) = refused {
            return Err(refused).doing(at);
        }
        let tensors = self.plan.tensors.iter().map(folder_infos).collect::<Result<Vec<_>>>()?.concat();
        Source::unwritten(self.path, self.config_json().doing(at)?, tensors).doing(at)
    }

    /// Begins the output: everything but the weights is on the disk when this returns, under a temporary name.
    ///
    /// # Errors
    /// As [`check`](Self::check); something the container has no place for, such as an unknown tokenizer.
    pub fn create(&self) -> Result<Sink> {
        let at = || format!("while creating `{}`", self.path.display());
        let made = NewFolders::above(self.path).doing(at)?;
        let container = match &self.plan.output {
            Output::Gguf { file_type } => self.create_gguf(*file_type),
            Output::Plain | Output::Folder { .. } => self.create_folder(),
        };
        let (container, path) = (container.doing(at)?, self.path.to_owned());
        let (unfinished, hashes) = (HashMap::new(), HashMap::new());
        let mut sink = Sink { container, path, unfinished, hashes, _made: made };
        if let Container::Gguf(writer) = &mut sink.container {
            for (name, values) in self.config.gguf_tensors() {
                writer.write(name, &encode_floats(Dtype::F32, &values)?).doing(at)?;
            }
        }
        Ok(sink)
    }

    /// The metadata of a GGUF file.
    fn metadata(&self, file_type: u32) -> Result<Vec<(String, gguf::Value)>> {
        let config = self.config;
        let tokenizer = self.tokenizer.ok_or_else(|| {
            Failure::new("the model has no tokenizer, and a GGUF file must have one")
                .hint("copy tokenizer.json (or tokenizer.model) of the original model into the folder")
        })?;
        let mut metadata = config.gguf_metadata()?;
        let name = self.source.name();
        let general = [
            ("general.type", gguf::Value::from("model")),
            ("general.name", gguf::Value::from(name)),
            ("general.file_type", gguf::Value::U32(file_type)),
            ("general.quantization_version", gguf::Value::U32(QUANTIZATION_VERSION)),
        ];
        metadata.splice(1..1, general.map(|(key, value)| (key.to_owned(), value)));
        metadata.extend(tokenizer.gguf_metadata(config.vocab_size, self.pre_tokenizer)?);
        metadata.extend(self.plan.imatrix.iter().flat_map(Used::metadata));
        Ok(metadata)
    }

    /// The length of the GGUF file, whatever its file type.
    ///
    /// # Errors
    /// What has no place in the format.
    pub fn file_bytes(&self) -> Result<u64> {
        Ok(gguf::file_bytes(&self.metadata(0)?, &self.gguf_tensors())?)
    }

    fn create_gguf(&self, file_type: u32) -> Result<Container> {
        let (metadata, tensors) = (self.metadata(file_type)?, self.gguf_tensors());
        let most = self.max_part_bytes.unwrap_or(u64::MAX);
        let writer = gguf::Writer::create_parts(self.path, self.overwrite, &metadata, &tensors, most)?;
        Ok(Container::Gguf(writer))
    }

    /// The tensors of a GGUF, in the order of the file.
    fn gguf_tensors(&self) -> Vec<TensorInfo> {
        // All experts of a layer share a tensor, filled in their order.
        let is_new = |t: &&PlannedTensor| t.spec.expert.is_none_or(|expert| expert.index == 0);
        let tensors = self.plan.tensors.iter().filter(is_new).map(gguf_info);
        let constants = self.config.gguf_tensors();
        let constants =
            constants.iter().map(|(name, values)| TensorInfo::new(*name, Dtype::F32, &[values.len()]));
        tensors.chain(constants).collect()
    }

    fn create_folder(&self) -> Result<Container> {
        let folder = AtomicFolder::create(self.path, self.overwrite)?;
        let here = folder.temp_path();
        let write = |name: &str, bytes: &[u8]| {
            std::fs::write(here.join(name), bytes).doing(|| format!("while writing `{name}`"))
        };
        write(hf::CONFIG, format!("{:#}\n", self.config_json()?).as_bytes())?;
        if self.source.folder().is_some() {
            for name in COMPANIONS.iter().filter(|name| self.source.path.join(name).is_file()) {
                std::fs::copy(self.source.path.join(name), here.join(name))
                    .doing(|| format!("while copying `{name}`"))?;
            }
        } else if let Some(tokenizer) = self.tokenizer {
            for (name, bytes) in tokenizer.hf_files()? {
                write(&name, &bytes)?;
            }
        }
        let tensors = self.plan.tensors.iter().map(folder_infos).collect::<Result<Vec<_>>>()?.concat();
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let writer = safetensors::Writer::create(here, Overwrite::No, &metadata, &tensors, MAX_SHARD_BYTES)?;
        Ok(Container::Folder { folder, writer })
    }

    /// The source's configuration with what has changed.
    fn config_json(&self) -> Result<Value> {
        let mut config = match self.source.folder() {
            Some(folder) => reshaped(&folder.config, &self.source.config, self.config)?,
            None => self.config.to_hf().hint(|| match self.config.layer_sizes[..] {
                [] => "start from the Hugging Face folder that the GGUF file was made from",
                _ => "layers that differ in size fit into a GGUF file: let the output's name end in .gguf",
            })?,
        };
        let object = config.as_object_mut().ok_or_else(|| Failure::new("the configuration is no object"))?;
        object.shift_remove(CONFIG_KEY);
        let dtype =
            self.plan.tensors.iter().find(|t| t.spec.tap.is_some()).and_then(PlannedTensor::float_in_file);
        if let Some(name) = dtype.and_then(torch_name) {
            let key = if object.contains_key("dtype") { "dtype" } else { "torch_dtype" };
            object.insert(key.to_owned(), json!(name));
        }
        if let Output::Folder { layout, scheme } = self.plan.output {
            let is_kept =
                |t: &&PlannedTensor| t.spec.tap.is_some() && matches!(t.treatment, Treatment::Float(_));
            let module = |t: &PlannedTensor| t.spec.name.trim_end_matches(".weight").to_owned();
            let ignored = self.plan.tensors.iter().filter(is_kept).map(module).collect();
            object.insert(CONFIG_KEY.to_owned(), layout.describe(scheme, ignored)?);
        }
        Ok(config)
    }
}

/// A configuration with the numbers of `after` in the place of those of `before`, whose it was; other keys stay as they are.
///
/// # Errors
/// Numbers that no configuration of the family can say.
fn reshaped(config: &Value, before: &ModelConfig, after: &ModelConfig) -> Result<Value> {
    let mut config = config.clone();
    let (Some(object), false) = (config.as_object_mut(), before == after) else { return Ok(config) };
    let (old, new) = (before.to_hf()?, after.to_hf()?);
    for (key, value) in new.as_object().into_iter().flatten() {
        // Where it was left out it was worked out from numbers that may have changed.
        if old.get(key) != Some(value) || key == "head_dim" {
            object.insert(key.clone(), value.clone());
        }
    }
    if new.get("layer_types").is_none() {
        object.shift_remove("layer_types"); // one entry for each layer there was, all of them the same
    }
    if ModelConfig::from_hf(&config)? != *after {
        return Err(Failure::new(format!(
            "config.json cannot say this shape of a {} model",
            after.family.name
        ))
        .hint("prune along fewer axes; attar prune --dry-run shows the shape"));
    }
    Ok(config)
}

fn torch_name(dtype: Dtype) -> Option<&'static str> {
    match dtype {
        Dtype::F32 => Some("float32"),
        Dtype::F16 => Some("float16"),
        Dtype::Bf16 => Some("bfloat16"),
        _ => None,
    }
}

fn gguf_info(tensor: &PlannedTensor) -> TensorInfo {
    let dtype = match &tensor.treatment {
        Treatment::Float(dtype) => *dtype,
        Treatment::Codes(encoding) => Dtype::from(encoding.ggml_type().unwrap_or(GgmlType::F32)),
    };
    let place = tensor.spec.gguf_place();
    TensorInfo::new(&place.name, dtype, &place.shape)
}

fn folder_infos(tensor: &PlannedTensor) -> Result<Vec<TensorInfo>> {
    let spec = &tensor.spec;
    match &tensor.treatment {
        Treatment::Float(dtype) => Ok(vec![TensorInfo::new(&spec.name, *dtype, &spec.shape)]),
        Treatment::Codes(Named::Folder(encoding)) => {
            let [rows, cols] = rows_and_cols(spec);
            let info = |part: &Part| {
                let name = part.name(&spec.name).ok_or_else(|| unheld(tensor))?;
                Ok(TensorInfo::new(name, part.dtype, &part.shape))
            };
            encoding.parts(rows, cols).iter().map(info).collect()
        }
        Treatment::Codes(Named::Listed(_)) => Err(unheld(tensor)),
    }
}

fn unheld(tensor: &PlannedTensor) -> Failure {
    Failure::new(format!(
        "a folder of safetensors cannot hold `{}` as {}",
        tensor.spec.name,
        tensor.encoding_name()
    ))
}

impl Sink {
    /// In which order and runs rows must come.
    pub fn rows(&self) -> Rows {
        match self.container {
            Container::Gguf(_) => Rows::OfHeads,
            Container::Folder { .. } => Rows::AsTheyAre,
        }
    }

    fn row_order(&self, tensor: &PlannedTensor) -> RowOrder {
        self.rows().order(tensor)
    }

    /// The name that a float tensor has in the output.
    pub fn stored_name<'a>(&self, tensor: &'a PlannedTensor) -> &'a str {
        match self.container {
            Container::Gguf(_) => &tensor.spec.gguf_name,
            Container::Folder { .. } => &tensor.spec.name,
        }
    }

    /// Writes the next rows of a float tensor; gives back what a reader will get.
    ///
    /// # Errors
    /// A disk that refuses.
    pub fn floats(&mut self, tensor: &PlannedTensor, dtype: Dtype, mut values: Vec<f32>) -> Result<()> {
        let [rows, cols] = rows_and_cols(&tensor.spec);
        if let RowOrder::RopeInterleaved { heads } = self.row_order(tensor) {
            let here = values.len() / cols;
            let order = RowOrder::RopeInterleaved { heads: here * heads / rows }.to_gguf(here);
            values = order.iter().flat_map(|&row| &values[row * cols..][..cols]).copied().collect();
        }
        if let Container::Gguf(_) = self.container {
            tensor.spec.gguf_adds.to_gguf(&mut values);
        }
        let bytes = encode_floats(dtype, &values)?;
        let name = self.stored_name(tensor);
        let decoded = decode_floats(dtype, &bytes)?;
        self.write_hashed(tensor, &decoded, |sink| sink.write(name, &bytes))
    }

    /// Writes the next rows of a coded tensor.
    ///
    /// # Errors
    /// Weights so large that their scales are infinite; a disk that refuses.
    pub fn codes(&mut self, tensor: &PlannedTensor, encoding: &Named, solution: &Solution) -> Result<()> {
        let here = solution.codes.nrows();
        let rows = solution.decoded.axis_iter(Axis(0)).into_par_iter();
        if rows.any(|row| !row.iter().fold(true, |all, x| all & x.is_finite())) {
            return Err(Failure::new(format!("its values are too large for the scales of {}", encoding.name()))
                .hint("no format with scales in f16 holds this matrix: keep it as it is, with --tensor REGEX=bf16 in a \
                       GGUF file or REGEX=float in a folder"));
        }
        let unheld = || Failure::new(format!("{} has no codes", tensor.encoding_name()));
        let grid = encoding.grid().ok_or_else(unheld)?;
        let packed = || grid.pack(&solution.grid, solution.codes.view());
        let order = match (encoding, self.row_order(tensor)) {
            (Named::Listed(_), RowOrder::RopeInterleaved { heads }) => {
                let [rows, _] = rows_and_cols(&tensor.spec);
                Some(RowOrder::RopeInterleaved { heads: here * heads / rows }.to_gguf(here))
            }
            _ => None,
        };
        let decoded = match &order {
            Some(order) => CowArray::from(solution.decoded.select(Axis(0), order)),
            None => CowArray::from(solution.decoded.view()),
        };
        let decoded = decoded.as_standard_layout();
        self.write_hashed(tensor, decoded.as_slice().unwrap_or_default(), |sink| match (encoding, &order) {
            (Named::Folder(encoding), _) => sink.parts(tensor, &**encoding, (&packed(), here)),
            (Named::Listed(_), None) => sink.write(&tensor.spec.gguf_name, &packed()),
            (Named::Listed(_), Some(order)) => {
                let bytes = packed();
                let per_row = bytes.len() / here;
                let rows = order.iter().flat_map(|&row| &bytes[row * per_row..][..per_row]);
                sink.write(&tensor.spec.gguf_name, &rows.copied().collect::<Vec<_>>())
            }
        })
    }

    fn parts(
        &mut self,
        tensor: &PlannedTensor,
        encoding: &dyn FolderEncoding,
        packed: (&[u8], usize),
    ) -> Result<()> {
        let name = &tensor.spec.name;
        let mut unfinished = self.unfinished.remove(name).unwrap_or_default();
        unfinished.add(encoding, rows_and_cols(&tensor.spec), packed, |part, bytes| {
            self.write(&part.name(name).ok_or_else(|| unheld(tensor))?, bytes)
        })?;
        self.unfinished.insert(name.clone(), unfinished);
        Ok(())
    }

    /// Hashes what a reader will get while the bytes are made and written.
    fn write_hashed(
        &mut self,
        tensor: &PlannedTensor,
        decoded: &[f32],
        write: impl FnOnce(&mut Self) -> Result<()> + Send,
    ) -> Result<()> {
        let name = &tensor.spec.name;
        let mut hash = self.hashes.remove(name).unwrap_or_default();
        let (hash, written) = rayon::join(
            move || {
                hash_floats(&mut hash, decoded);
                hash
            },
            || write(self),
        );
        self.hashes.insert(name.clone(), hash);
        written
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = &self.path;
        match &mut self.container {
            Container::Gguf(writer) => writer.write(name, bytes),
            Container::Folder { writer, .. } => writer.write(name, bytes),
        }
        .doing(|| format!("while writing `{name}` to `{}`", path.display()))
    }

    /// The folder the output will be, while it has another name; `None` where it is a file.
    pub fn folder(&self) -> Option<&Path> {
        match &self.container {
            Container::Folder { folder, .. } => Some(folder.temp_path()),
            Container::Gguf(_) => None,
        }
    }

    /// Completes the output: it appears under its name, or not at all. Gives the hashes of what a reader will get for
    /// each tensor, by Hugging Face name.
    ///
    /// # Errors
    /// A tensor that is not complete, a disk that refuses.
    pub fn finish(self) -> Result<Hashes> {
        let at = format!("while finishing `{}`", self.path.display());
        match self.container {
            Container::Gguf(writer) => writer.finish(),
            Container::Folder { folder, writer } => writer.finish().and_then(|()| folder.finish()),
        }
        .doing(|| at)?;
        Ok(self.hashes.into_iter().map(|(name, hash)| (name, hex(&hash.finalize()))).collect())
    }
}

"""The models, interchangeable behind one interface. Importing this package does not load torch.

In reading order:

labels        the tags that the pretrained models give; without torch
config        what the options of all models share; without torch
pretrained    the options of the pretrained models; without torch
options       the options of the others, and MODELS, the registry of all by name; without torch
formats       names of parameters and options in runs that an earlier version stored; without torch
base          Embedder, the interface
contrastive   windows of one recording against those of others, by NT-Xent on a small ConvNeXt
factors       regression of collaborative filtering factors
cae           convolutional autoencoder over time
cae2d         convolutional autoencoder over time and frequency
dualaxis      autoencoder with a branch over time and a branch over frequency
vae           variational autoencoder
ali           adversarially learned inference
infogan       InfoGAN
musicnn       pretrained networks, with their weights
distilled     regression of the vectors of another run
folder        a local folder with a model of the transformers library
clap_text     the text side of CLAP
transformers  pretrained encoders of the transformers library, from a local folder
mfcc          baseline: statistics of the MFCCs
pca           baseline: principal components
random        baseline: another model's encoder with its initial weights
raw           baseline: the flattened window
build         a model from its options
"""

from songray.learning.models.config import LearningConfig, ModelConfig
from songray.learning.models.options import MODELS

__all__ = ["MODELS", "LearningConfig", "ModelConfig"]

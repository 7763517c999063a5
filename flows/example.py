"""The campaign file that `labelcycle init` writes."""

COST = (
    "As it is, the first round asks for 250 labels, 200 to measure on and 50 to learn from, before there is a model; "
    "each later one for 100. Smaller audit_size and seed_set_size cost less at first and say less."
)
"""What the example's first rounds cost."""

EXAMPLE = """\
# A labelcycle campaign: one pool of images, labelled round by round.
# Relative paths are relative to this file, those of SQLite files too. Keys that are commented out show a default;
# those of reduction, dice and batch_size depend on the task.

name = "my-campaign"             # lower case; names the Label Studio project and the MLflow experiment
pool = "images"                  # a folder, or a .csv/.parquet with columns uri and, optionally, label and group; or
                                 # the address of one, "s3://bucket/folder", gs:// or az://: see
                                 # docs/how-to/object-storage.md; its keys are never here, but in the environment
# follow_links = false           # use images that symbolic links bring in from outside the pool
# manifest_labels = "complete"   # "positives_only" where a class that the labels in the pool's table do not name is
                                 # unknown, and not absent; of images with several labels
# task = "classification"        # one class for each image; multi_label: any of the classes, or none;
                                 # segmentation: masks of them; detection: boxes around them
classes = ["cat", "dog"]         # what annotators choose from; one may be added at any time, and renamed: see [renamed]

# Every setting may change between rounds, but for name, task, audit_size and group; to change these,
# begin another campaign with all labels of this one: `labelcycle init NEW.toml --from OLD.toml`

budget = 1000                    # labels you will pay for in all, the audit set included
# budget_in = "images"           # "regions": the budget counts the boxes or masks that people mark in images
audit_size = 200                 # random images, labelled once, never trained on: the honest measure (± 4 points)
seed_set_size = 50               # first labels, before there is a model: round 0 asks for these and the audit set
# group = "parent"               # images that depend on each other, such as frames of a film, stay on one side of the
                                 # audit set: those of a folder, or an expression with one part in brackets on the
                                 # path below the pool, '^(.+)_frame\\d+'; a manifest may have a column group instead
query_size = 100                 # labels asked for in each later round

# target_accuracy = 0.95         # stop early: the lower end of the audit interval is at least this
# min_gain = 0.005               # stop early: the next query_size labels are worth less, 0.005 is half a point

# cold_start = "random"          # how the seed set is chosen: random, or spread over the pool by coverage,
                                 # typiclust or max_herding
# acquisition = "margin"         # entropy, margin, least_confidence, variance, mean_std,
                                 # variation_ratio, bald (the last four need at least two members)
# reduction = "mean"             # of many decisions about an image, how their scores become one: mean, max, sum,
                                 # top_tenth, foreground; if not given, top_tenth in segmentation
# strategy = "auto"              # covers the pool while labels are few, then what is uncertain. Others by score: top_k,
                                 # power; by place: k_center, novel, typical, coverage, typiclust, max_herding; by
                                 # both: uherding, badge, falcun, bait, suggestive, weighted_k_center, top_k_diverse,
                                 # cluster_margin; by members: batch_bald, drop_query; and random
# strategy_options = {}          # keywords of the strategy, for example { beta = 2.0 } of power
# sub_pool = 10000               # the strategy sees at most this many candidates, drawn at random
# prefilter = 10                 # and of these the best by score: this many times query_size
# balance_classes = false        # ask for as many of each guessed class as makes the labels even; where images have
                                 # several labels, for each class in turn, that of the fewest labels first
# random_slice = 0.1             # share of each batch drawn at random: keeps exploring
# close_at = 1.0                 # close a round when this share of it is answered; late labels join the next round
# close_after = "3d"             # or when this much time has passed: s, m, h, d, w
# max_unused = 0.5               # stop when a larger share of the files or answers cannot be used
# schedule = "*/15 * * * *"      # cron line for `labelcycle serve`
# timezone = "Europe/Berlin"     # of that line; the machine's own if not given
# feature_cache_gb = 20.0        # disk for features and decoded images that are kept; see `labelcycle cache`
# image_cache_gb = 20.0          # disk for images of object stores that are read again and again
# decode_memory_gb = 2.0         # memory for images while they are decoded; a larger image is set aside
# workers = "ray"                # members are trained and candidates scored by workers of Ray, side by side; if not
                                 # given "local": all is done by this process
# ray_address = "10.0.0.5:6379"  # of a cluster; if not given, a run starts Ray on this machine for itself
# ray_cpus = 1                   # processors of a worker, as threads of torch
# ray_gpus = 0                   # GPUs of a worker; of 0.25 four share one
# gpus_per_network = 1           # GPUs of one machine that train a whole network together
# seed = 0                       # same seed, same choices
# folder = ".labelcycle/campaigns/my-campaign"   # where the campaign keeps its rounds

[model]
name = "torchvision:resnet18"    # torchvision:NAME, timm:NAME, small_cnn for small images, or package.module:factory:
                                 # a network of your own. That is code, and a campaign that names it runs it
# image_size = 224               # pixels; images are resized to this square; by default that of the weights
# channels = 3                   # 1 for grey images
weights = "DEFAULT"              # a weight name of the hub, a file (.pt, .safetensors), factory; random if not given.
                                 # Without internet: a file that holds the network's weights, weights = "resnet18.pth"
# head = "linear"                # dropout and a linear layer, or mlp
# dropout = 0.5
# train = "auto"                 # head, all; auto goes from head to all as labels come in:
# all_from = 50                  # labels per class from which everything is trained; 1 unless augmentation is natural:
                                 # pretrained features fit photographs
# body_rate = 0.1                # learning rate of pretrained layers, as a share of that of the head
# start = "pretrained"           # each round anew from the weights; previous: near the last round's, but for heads
                                 # that are trained alone; scratch: from none
# augmentation = "natural"       # none, digits (no flips: digits, documents), natural (photos)
# class_balanced = true          # weigh rare classes up
# dice = 1.0                     # of segmentation alone, refused elsewhere: weight of the soft Dice loss beside the
                                 # cross-entropy; 1 if not given
# label_smoothing = 0.0
# schedule = "cosine"            # how the learning rate falls: cosine, plateau, constant
# learning_rate = 2e-3
# weight_decay = 1e-2
# max_epochs = 30
# max_minutes = 30               # a round that would train longer here trains the head alone
# patience = 5                   # stop after so many epochs without improvement, or more; if not given at max_epochs
# batch_size = 32                # images of an optimiser step; if not given, 8 in segmentation and detection
# min_steps = 16                 # optimiser steps of an epoch at least, however few labels there are
# device = "auto"                # auto, cpu, cuda, mps

# [model.pseudo_labels]          # train once more each round on what the model is sure of; these labels are not kept
# threshold = 0.0                # sure is an entropy below this, in nats; 0 is off, 0.005 to 0.05 is usual
# decay = 0.0                    # what each round takes off the threshold
# max_count = 1000               # at most this many, and never more than there are labels

[members]                        # whose disagreement is the uncertainty
ensemble = 3                     # networks trained from different seeds
# bagging = false                # each learns from its own draw of the labels
# mc_dropout = 0                 # dropout passes of each network; 0 is off
# laplace = 0                    # draws of each network's last layer from its posterior
# swag = 0                       # draws of each network's trained weights from its last steps
# views = 0                      # augmented views of each image; the members are the product of all that is on

# [renamed]                      # classes that have another name now; labels are kept. Two that get one name are merged
# "old name" = "cat"

[label_studio]                   # the token is never here: export LABEL_STUDIO_API_KEY
url = "local"                    # "local" is the server of `labelcycle up`; else https://...
# project = "my-campaign"        # title, 3 to 50 characters
# instructions = "..."           # what annotators read first
# presign_minutes = 10           # show images of an object store from there, not through Label Studio

[mlflow]
uri = "local"                    # "local", sqlite:///path.db, or the address of a server

[keep]                           # of old rounds; labels, batches, settings, numbers and the best model stay for ever
# models = 5                     # newest rounds whose weights stay in the campaign's folder
# scores = 3                     # newest rounds whose scores of all candidates stay
# tracked_models = 5             # newest rounds whose model stays in MLflow; all if not given

# [notify]                       # the address of a webhook is never here: export LABELCYCLE_WEBHOOK
# command = ["./tell.sh"]        # gets each event as JSON on its standard input; `labelcycle notify` tries it
# on = ["failed", "awaiting"]    # which events, of failed, awaiting, new_champion, target_reached, budget_spent,
                                 # finished, audit_outgrown and schedule_silent; all if not given
# awaiting_after = "3d"          # a batch that waits so long for labels is told, and each time again
# again_after = "1d"             # a failure that lasts is told once more after so much time
"""

"""Small untrained models and recordings."""

from helpers import models

tokenizer, encoder_config, text_config = models.tokenizer, models.encoder_config, models.text_config
make_ecg, make_pair, pair = models.make_ecg, models.make_pair, models.pair

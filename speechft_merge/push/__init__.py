"""Pushes a merged model to the Hub: checks the rights first, then makes one commit after which the merge is loaded."""

from speechft_merge.push.commit import Pushed, push
from speechft_merge.push.target import PushTarget, prepare_push, push_command

__all__ = ["PushTarget", "Pushed", "prepare_push", "push", "push_command"]

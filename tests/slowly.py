"""The command on a disk that takes some time for every chunk: `slowly.py SECONDS BASE FINETUNED...`.

So a merge of a small model can be met while it writes, on a busy machine too.
"""

import sys
import time

from speechft_merge.__main__ import main
from speechft_merge.output.writer import FileWriter

seconds = float(sys.argv.pop(1))
write = FileWriter.write


def write_slowly(self: FileWriter, offset: int, data: memoryview) -> None:
    write(self, offset, data)
    time.sleep(seconds)


if __name__ == "__main__":
    FileWriter.write = write_slowly  # type: ignore[method-assign]
    main()

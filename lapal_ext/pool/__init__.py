"""The rows one may pick from: in memory, in a file, or shared by several processes."""

"""
dirq - the Directory::Queue formats: queues that many programs, in several languages, share through a directory
"""

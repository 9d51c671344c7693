"""handlers - ready-made handlers: echo (to try a pool out), command (any program per message)"""

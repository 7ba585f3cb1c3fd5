"""Problems made by a program: nothing is downloaded, and every step of a response can be checked."""

from songray.command import main

main()
